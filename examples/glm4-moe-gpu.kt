# GLM-4.5-Air on one GPU of 24 GB and the host: attention, the dense layer and the shared experts on the GPU in 8 bits, routed
# experts of the last layers as well (1.2 GiB a layer in 4 bits), those of the others in host memory.
#   ktc plan --no-weights --model examples/configs/glm-4.5-air examples/glm4-moe-gpu.kt
model Glm4MoeForCausalLM

include "std/glm4_moe.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param gpu_layers: int = 11 "layers, from the last, whose routed experts live on the GPU"

device gpu = cuda:0 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = 56GiB)

rule everything {
  match  **
  place  gpu
  quant  q8_0
}

# Their rows have 1408 elements, no multiple of the 256 that q4_k takes together.
rule experts {
  match  @experts
  place  host
  quant  q4_0
  expect layers - config.first_k_dense_replace
}

rule last_experts {
  match  @experts
  where  layer >= layers - gpu_layers
  place  gpu
  expect min(gpu_layers, layers - config.first_k_dense_replace)
}

# One row a token is read: the table needs no fast memory.
rule embedding {
  match  @embedding
  place  host
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

assert peak(gpu) <= memory(gpu), "lower gpu_layers or context"
assert peak(host) <= memory(host), "raise gpu_layers"
