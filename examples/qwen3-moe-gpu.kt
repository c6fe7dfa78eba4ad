# Qwen3-30B-A3B and Qwen3-235B-A22B on one GPU of 24 GB and the host. Of the smaller one, in 6 bits, the experts of six layers
# stay in host memory; of the larger one, in 4 bits, those of most:
#   ktc plan --no-weights --model examples/configs/qwen3-30b-a3b examples/qwen3-moe-gpu.kt
#   ktc plan --no-weights --model examples/configs/qwen3-235b-a22b examples/qwen3-moe-gpu.kt -D bits=q4_k -D gpu_layers=12 -D ram=128GiB
model Qwen3MoeForCausalLM

include "std/qwen3_moe.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param gpu_layers: int = 42 "layers, from the last, whose routed experts live on the GPU"
param bits: name = q6_k "number format of the experts"
param ram: size = 16GiB "memory of the host"

device gpu = cuda:0 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = ram)

rule everything {
  match  **
  place  gpu
  quant  q4_k
}

rule experts {
  match  @experts
  place  host
  quant  bits
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
  quant  q8_0
}

rule head {
  match  @head
  quant  q6_k
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
