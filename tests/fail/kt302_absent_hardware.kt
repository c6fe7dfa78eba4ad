# model: tiny-llama
model LlamaForCausalLM

device gpu = cuda:7 (memory = 24GiB)
rule everything { match ** place gpu }
