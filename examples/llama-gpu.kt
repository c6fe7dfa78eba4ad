# Llama 3 8B on one GPU of 24 GB, the embedding in host memory; with `host_layers`, the last layers there as well.
# InternLM2.5-7B has these modules and this shape, with a vocabulary of its own, and is read as this class.
# To plan without weights and without the hardware:
#   ktc plan --no-weights --model examples/configs/llama-3-8b examples/llama-gpu.kt
model LlamaForCausalLM

include "std/llama.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param host_layers: int = 0 "layers, from the last, that run on the host"

device gpu = cuda:0 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = 16GiB)

rule everything {
  match  **
  place  gpu
  quant  q4_k
}

rule last_layers {
  match  @decoder
  where  layer >= layers - host_layers
  place  host
  expect host_layers
}

# One row a token is read: the table needs no fast memory.
rule embedding {
  match  @embedding
  place  host
  quant  q8_0
}

# Every token's choice goes through the head: it stays finer than the layers.
rule head {
  match  @head
  quant  q6_k
}

rule attention {
  match  @attention
  cache  paged(dtype = f16, tokens = context)
  expect layers
}

assert peak(gpu) <= memory(gpu), "raise host_layers or lower context"
assert peak(host) <= memory(host), "lower host_layers or context"
