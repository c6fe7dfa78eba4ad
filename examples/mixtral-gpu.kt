# Mixtral 8x7B and 8x22B on one GPU of 24 GB and the host. A layer's eight experts take 0.74 GiB in 4 bits (8x22B: 1.27 GiB):
# those of the last layers fill what attention and the cache leave of the GPU.
#   ktc plan --no-weights --model examples/configs/mixtral-8x7b examples/mixtral-gpu.kt
#   ktc plan --no-weights --model examples/configs/mixtral-8x22b examples/mixtral-gpu.kt -D gpu_layers=11 -D ram=72GiB
model MixtralForCausalLM

include "std/mixtral.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param gpu_layers: int = 26 "layers, from the last, whose experts live on the GPU"
param ram: size = 16GiB "memory of the host"

device gpu = cuda:0 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = ram)

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
assert peak(host) <= memory(host), "raise gpu_layers or ram"
