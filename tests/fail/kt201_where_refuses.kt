# model: tiny-llama
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule late { match model.layers[*].mlp where layer > 7 place host }
