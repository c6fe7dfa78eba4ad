# Gemma 3 27B, the text model, on one GPU of 24 GB in 4 bits. Head and embedding share one table of 1.4 B parameters: it stays
# on the GPU, in 6 bits, since the head reads all of it.
#   ktc plan --no-weights --model examples/configs/gemma-3-27b examples/gemma3-gpu.kt
model Gemma3ForCausalLM

include "std/gemma3.kt"

param context: int = 4096 "tokens of KV cache to reserve"
param host_layers: int = 0 "layers, from the last, that run on the host"

device gpu = cuda:0 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = 32GiB)

rule everything {
  match  **
  place  gpu
  quant  q4_k
}

rule vocabulary {
  match  @embedding or @head
  quant  q6_k
}

rule last_layers {
  match  @decoder
  where  layer >= layers - host_layers
  place  host
  expect host_layers
}

rule attention {
  match  @attention
  cache  paged(dtype = f16, tokens = context)
  expect layers
}

assert peak(gpu) <= memory(gpu), "raise host_layers or lower context"
assert peak(host) <= memory(host)
