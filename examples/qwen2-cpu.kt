# Qwen2.5 7B on one CPU in 4 bits, with more bits where they tell: the head, and the layers at both ends.
#   ktc plan --no-weights --model examples/configs/qwen2.5-7b examples/qwen2-cpu.kt
model Qwen2ForCausalLM

include "std/qwen2.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param careful: int = 2 "layers at each end that stay in 6 bits"

device host = cpu (memory = 8GiB)

rule everything {
  match  **
  place  host
  quant  q4_k
}

rule ends {
  match  @linears
  where  layer < careful or layer >= layers - careful
  quant  q6_k
}

rule vocabulary {
  match  @embedding or @head
  quant  q6_k
}

rule attention {
  match  @attention
  cache  paged(dtype = f16, tokens = context)
  expect layers
}

assert peak(host) <= memory(host), "lower context"
