# model: tiny-deepseek
model DeepseekV3ForCausalLM
include "std/deepseek_v3.kt"
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule attention { match @linears or @kv_b quant q4_k }
