# model: tiny-llama
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule mlps { match model.layers[*].mlp: LlamaMlp quant q8_0 }
