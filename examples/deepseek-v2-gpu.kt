# DeepSeek-V2-Lite (16 B) and DeepSeek-V2 (236 B) on one GPU of 24 GB and the host: attention with its latent cache, dense and
# shared layers on the GPU, routed experts of the last layers as well, those of the others in host memory.
#   ktc plan --no-weights --model examples/configs/deepseek-v2-lite examples/deepseek-v2-gpu.kt
#   ktc plan --no-weights --model examples/configs/deepseek-v2 examples/deepseek-v2-gpu.kt -D gpu_layers=4 -D ram=128GiB
model DeepseekV2ForCausalLM

include "std/deepseek_v2.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param gpu_layers: int = 26 "layers, from the last, whose routed experts live on the GPU"
param ram: size = 8GiB "memory of the host"

device gpu = cuda:0 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = ram)

# 8 bits also where rows are no multiple of the 256 elements that q4_k takes together.
rule everything {
  match  **
  place  gpu
  quant  q8_0
}

rule experts {
  match  @experts
  place  host
  quant  q4_0
  expect layers - config.first_k_dense_replace
}

# V2's experts have rows of 1536 elements, V2-Lite's of 1408.
rule experts_in_blocks_of_256 {
  match  @experts
  where  config.moe_intermediate_size % 256 == 0
  quant  q4_k
  expect any
}

rule last_experts {
  match  @experts
  where  layer >= layers - gpu_layers
  place  gpu
  expect min(gpu_layers, layers - config.first_k_dense_replace)
}

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
assert peak(host) <= memory(host), "raise gpu_layers or ram"
