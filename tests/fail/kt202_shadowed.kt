# model: tiny-llama
model LlamaForCausalLM

device host = cpu (memory = 1GiB)
device near = cpu (memory = 1GiB)
rule head { match lm_head place near }
rule everything { match ** place host }
