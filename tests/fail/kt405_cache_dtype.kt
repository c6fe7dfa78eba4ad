# model: tiny-llama
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule attention { match model.layers[*].self_attn cache paged(dtype = q2_k, tokens = 64) }
