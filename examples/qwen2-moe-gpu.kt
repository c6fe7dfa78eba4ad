# Qwen2-57B-A14B on one GPU of 24 GB and the host: attention and shared experts on the GPU, and the routed experts of as many
# layers as fit; the others in host memory.
#   ktc plan --no-weights --model examples/configs/qwen2-57b-a14b examples/qwen2-moe-gpu.kt
model Qwen2MoeForCausalLM

include "std/qwen2_moe.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param gpu_layers: int = 14 "layers, from the last, whose routed experts live on the GPU"

device gpu = cuda:0 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = 32GiB)

rule everything {
  match  **
  place  gpu
  quant  q8_0
}

rule experts {
  match  @experts
  place  host
  quant  q4_k
  expect layers
}

rule last_experts {
  match  @experts
  where  layer >= layers - gpu_layers
  place  gpu
  expect min(gpu_layers, layers)
}

# One row a token is read: the table needs no fast memory.
rule embedding {
  match  @embedding
  place  host
}

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

assert peak(gpu) <= memory(gpu), "lower gpu_layers or context"
assert peak(host) <= memory(host), "raise gpu_layers"
