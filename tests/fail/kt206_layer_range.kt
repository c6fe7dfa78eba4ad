# model: tiny-llama
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule some { match model.layers[1..9].mlp quant q8_0 }
