# DeepSeek-V3 (671 B, 61 layers): attention, dense and shared layers on the GPU, routed experts in host memory.
# To plan without weights and without the hardware:
#   ktc plan --no-weights --model examples/configs/deepseek-v3 examples/deepseek-v3.kt
#
# It plans today's kernels: on the GPU the dialect's reference on bf16 weights, and keys and values cached in full rather
# than in their latent form. GPU kernels and latent attention are not there yet.
model DeepseekV3ForCausalLM

include "std/fusions.kt"

param context: int = 2048 "tokens of KV cache to reserve"
param gpu_layers: int = 0 "layers, from the last, whose routed experts live on the GPU as well"

device gpu = cuda:0 (memory = 80GiB, reserve = 1.5GiB)
device host = cpu (memory = 440GiB)

let experts = match model.layers[*].mlp.experts

rule everything {
  match  **
  place  gpu
  quant  bf16
}

rule routed_experts {
  match  @experts
  place  host
  quant  q4_k
  kernel cpu.experts
  expect 58
}

rule last_experts {
  match  @experts
  where  layer >= layers - gpu_layers
  place  gpu
  kernel torch.experts
  expect gpu_layers
}

# One row a token is read: the table needs no fast memory.
rule embedding {
  match  model.embed_tokens
  place  host
  expect 1
}

# Routing decides everything downstream: keep it as it was trained.
rule router {
  match  model.layers[*].mlp.gate
  quant  f32
  expect 58
}

rule attention {
  match  model.layers[*].self_attn
  cache  paged(dtype = bf16, tokens = context)
  expect layers
}

assert peak(gpu) <= memory(gpu), "lower gpu_layers or context"
assert peak(host) <= memory(host)
