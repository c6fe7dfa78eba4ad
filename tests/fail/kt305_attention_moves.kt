# model: tiny-llama
model LlamaForCausalLM

device host = cpu (memory = 1GiB)
device near = cpu (memory = 1GiB)
phase bulk = tokens >= 64
rule everything { match ** place host }
rule attention { match model.layers[*].self_attn on bulk { place near } }
