# Qwen3 8B on one GPU of 24 GB. `place auto` lets the compiler share the layers out: what is read most per byte goes to the
# GPU first, and what does not fit there, with a small `fast` say, to the host. `ktc plan --freeze` prints its choice as rules.
#   ktc plan --no-weights --model examples/configs/qwen3-8b examples/qwen3-gpu.kt
model Qwen3ForCausalLM

include "std/qwen3.kt"

param context: int = 16384 "tokens of KV cache to reserve"
param fast: size = 24GiB "memory of the GPU"

device gpu = cuda:0 (memory = fast, reserve = 1GiB)
device host = cpu (memory = 16GiB)

rule everything {
  match  **
  place  gpu
  quant  q8_0
}

rule layers_where_they_fit {
  match  @decoder
  place  auto(gpu, host)
  expect layers
}

rule embedding {
  match  @embedding
  place  host
  expect 1
}

rule attention {
  match  @attention
  cache  paged(dtype = f16, tokens = context)
  expect layers
}

assert peak(gpu) <= memory(gpu), "lower context"
assert peak(host) <= memory(host), "lower context"
