# GPT-OSS-120B on one GPU of 24 GB and the host: attention on the GPU in 8 bits, the experts in the MXFP4 they were trained in,
# those of the last layers on the GPU (1.6 GiB a layer), the others in host memory.
#   ktc plan --no-weights --model examples/configs/gpt-oss-120b examples/gpt-oss-gpu.kt
model GptOssForCausalLM

include "std/gpt_oss.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param gpu_layers: int = 12 "layers, from the last, whose experts live on the GPU"

device gpu = cuda:0 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = 48GiB)

rule everything {
  match  **
  place  gpu
  quant  q8_0
}

rule experts {
  match  @experts
  place  host
  quant  mxfp4
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
  cache  paged(dtype = bf16, tokens = context)
  expect layers
}

assert peak(gpu) <= memory(gpu), "lower gpu_layers or context"
assert peak(host) <= memory(host), "raise gpu_layers"
