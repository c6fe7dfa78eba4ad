# GLM-4.5-Air (106 B, 46 layers, 128 experts, 8 of them a token, and a shared one) on the CPU alone.
#   ktc plan --no-weights --model examples/configs/glm-4.5-air examples/glm4-moe-cpu.kt
model Glm4MoeForCausalLM

include "std/glm4_moe.kt"

param context: int = 8192 "tokens of KV cache to reserve"

device host = cpu (memory = 72GiB)

rule everything {
  match  **
  place  host
  quant  q8_0
}

# Their rows have 1408 elements, no multiple of the 256 that q4_k takes together.
rule experts {
  match  @experts
  quant  q4_0
  kernel cpu.experts
  expect layers - config.first_k_dense_replace
}

# Routing decides everything downstream: keep it exact.
rule router {
  match  @router
  quant  f32
  expect layers - config.first_k_dense_replace
}

rule attention {
  match  @attention
  cache  paged(dtype = bf16, tokens = context)
  expect layers
}

assert peak(host) <= memory(host), "lower context"
