# Qwen3-30B-A3B (48 layers, 128 experts, 8 of them a token) on the CPU alone.
# To plan without weights:
#   ktc plan --no-weights --model examples/configs/qwen3-30b-a3b examples/qwen3-moe-cpu.kt
model Qwen3MoeForCausalLM

include "std/qwen3_moe.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param careful: int = 4 "layers at each end whose attention stays in 8 bits"

device host = cpu (memory = 32GiB)

rule everything {
  match  **
  place  host
  quant  q8_0
}

rule attention_weights {
  match  @linears
  where  layer >= careful and layer < layers - careful
  quant  q4_k
  expect 4 * (layers - 2 * careful)
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
  cache  paged(dtype = bf16, tokens = context)
  expect layers
}

assert peak(host) <= memory(host), "lower context"
