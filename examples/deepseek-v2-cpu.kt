# DeepSeek-V2-Lite (16 B) and DeepSeek-V2 (236 B) on the CPU alone, with the cache in latent form.
#   ktc plan --no-weights --model examples/configs/deepseek-v2-lite examples/deepseek-v2-cpu.kt
#   ktc plan --no-weights --model examples/configs/deepseek-v2 examples/deepseek-v2-cpu.kt -D ram=160GiB
model DeepseekV2ForCausalLM

include "std/deepseek_v2.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param ram: size = 16GiB "memory of the host"

device host = cpu (memory = ram)

# 8 bits also where rows are no multiple of the 256 elements that q4_k takes together.
rule everything {
  match  **
  place  host
  quant  q8_0
}

# V2's experts have rows of 1536 elements, V2-Lite's of 1408.
rule experts_in_blocks_of_256 {
  match  @experts
  where  config.moe_intermediate_size % 256 == 0
  quant  q4_k
  expect any
}

rule experts_in_blocks_of_32 {
  match  @experts
  where  config.moe_intermediate_size % 256 != 0
  quant  q4_0
  expect any
}

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

assert peak(host) <= memory(host), "lower context or raise ram"
