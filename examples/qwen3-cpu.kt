# Qwen3 8B on one CPU: attention in 8 bits, the larger MLPs in 4.
#   ktc plan --no-weights --model examples/configs/qwen3-8b examples/qwen3-cpu.kt
model Qwen3ForCausalLM

include "std/qwen3.kt"

param context: int = 8192 "tokens of KV cache to reserve"

device host = cpu (memory = 10GiB)

rule everything {
  match  **
  place  host
  quant  q8_0
}

rule mlp {
  match  @mlp
  quant  q4_k
  expect layers
}

rule attention {
  match  @attention
  cache  paged(dtype = f16, tokens = context)
  expect layers
}

assert peak(host) <= memory(host), "lower context"
