# model: tiny-llama
model LlamaForCausalLM

device host = cpu (memory = 1GiB)
rule layers { match model.layers[*] place host expect layers }
