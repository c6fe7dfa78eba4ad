# Qwen2.5 7B on one GPU of 24 GB in 8 bits; only the embedding, one row of which a token reads, stays in host memory.
#   ktc plan --no-weights --model examples/configs/qwen2.5-7b examples/qwen2-gpu.kt
model Qwen2ForCausalLM

include "std/qwen2.kt"

param context: int = 32768 "tokens of KV cache to reserve"
param weights: name = q8_0 "number format of the layers: q4_k halves them"

device gpu = cuda:0 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = 4GiB)

rule everything {
  match  **
  place  gpu
  quant  weights
}

rule embedding {
  match  @embedding
  place  host
}

rule attention {
  match  @attention
  cache  paged(dtype = f16, tokens = context)
  expect layers
}

assert peak(gpu) <= memory(gpu), "lower context, or -D weights=q4_k"
assert peak(host) <= memory(host)
