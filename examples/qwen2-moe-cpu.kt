# Qwen2-57B-A14B (28 layers, 64 experts, 8 of them a token, and a shared expert behind a gate) on the CPU alone.
#   ktc plan --no-weights --model examples/configs/qwen2-57b-a14b examples/qwen2-moe-cpu.kt
model Qwen2MoeForCausalLM

include "std/qwen2_moe.kt"

param context: int = 8192 "tokens of KV cache to reserve"

device host = cpu (memory = 48GiB)

# The shared expert and attention are read for every token: 8 bits cost little beside 64 experts in 4.
rule everything {
  match  **
  place  host
  quant  q8_0
}

rule experts {
  match  @experts
  quant  q4_k
  kernel cpu.experts
  expect layers
}

# Routing decides everything downstream: keep it exact.
rule router {
  match  @router
  quant  f32
  expect layers
}

rule attention {
  match  @attention
  cache  paged(dtype = f16, tokens = context)
  expect layers
}

assert peak(host) <= memory(host), "lower context"
