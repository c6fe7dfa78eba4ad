# model: tiny-qwen-moe
# define: experts_per_token=3
model Qwen3MoeForCausalLM
include "std/qwen3_moe.kt"
include "std/experts_per_token.kt"
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
