# model: tiny-llama-q8
# ok
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule mlps { match model.layers[0].mlp quant q4_0 }
