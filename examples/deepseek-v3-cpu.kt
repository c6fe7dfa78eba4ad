# DeepSeek-V3 and R1 (671 B, 61 layers) on the CPU alone: a machine with 512 GB of memory.
# `-D experts_per_token=6` uses six of the eight experts that the model was trained to use: less to read, and other numbers.
#   ktc plan --no-weights --model examples/configs/deepseek-v3 examples/deepseek-v3-cpu.kt
model DeepseekV3ForCausalLM

include "std/deepseek_v3.kt"
include "std/experts_per_token.kt"

param context: int = 32768 "tokens of KV cache to reserve"

device host = cpu (memory = 480GiB)

# 37 B parameters are read for a token. Of those, attention, dense and shared layers are 17 B in 6 bits, experts 20 B in 4.
rule everything {
  match  **
  place  host
  quant  q6_k
}

rule experts {
  match  @experts
  quant  q4_k
  kernel cpu.experts
  expect layers - config.first_k_dense_replace
}

# Seen as one matrix a head, its rows have 128 elements: no multiple of the 256 that q6_k takes together.
rule latents {
  match  @kv_b
  quant  q8_0
  expect layers
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
