# model: tiny-llama
model LlamaForCausalLM

param context: int = 512
device host = cpu (memory = 3MiB, reserve = 512KiB)
rule everything { match ** place host }
rule attention { match model.layers[*].self_attn cache paged(dtype = f16, tokens = context) }
assert peak(host) <= memory(host), "lower context"
