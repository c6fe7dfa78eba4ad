# DeepSeek-V3 and R1 (671 B, 61 layers) on one GPU of 24 GB and the host. On the GPU: attention with its latent cache, dense
# layers and shared experts, in 4 bits but where said otherwise. In host memory: the 654 B parameters of the routed experts.
# To plan without weights and without the hardware:
#   ktc plan --no-weights --model examples/configs/deepseek-v3 examples/deepseek-v3-gpu.kt
# std/mla.kt, which the library includes, caches latents: 68.6 KiB a token instead of 4.8 MiB of keys and values.
model DeepseekV3ForCausalLM

include "std/deepseek_v3.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param gpu_layers: int = 0 "layers, from the last, whose routed experts live on the GPU: 6 GiB each"

device gpu = cuda:0 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = 384GiB)

rule everything {
  match  **
  place  gpu
  quant  q4_k
}

rule routed_experts {
  match  @experts
  place  host
  kernel cpu.experts
  expect layers - config.first_k_dense_replace
}

rule last_experts {
  match  @experts
  where  layer >= layers - gpu_layers
  place  gpu
  kernel auto
  expect gpu_layers
}

# One row a token is read: the table needs no fast memory.
rule embedding {
  match  @embedding
  place  host
  quant  q8_0
}

rule head {
  match  @head
  quant  q6_k
}

# Seen as one matrix a head, its rows have 128 elements: no multiple of the 256 that q4_k takes together.
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

assert peak(gpu) <= memory(gpu), "lower gpu_layers or context"
assert peak(host) <= memory(host)
