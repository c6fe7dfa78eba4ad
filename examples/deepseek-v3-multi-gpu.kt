# DeepSeek-V3 and R1 over 1 to 8 GPUs of 24 GB and the host: what deepseek-v3-gpu.kt places on one GPU, by whole layers on
# `devices` of them. The parameter is all that differs:
#   ktc plan --no-weights --model examples/configs/deepseek-v3 examples/deepseek-v3-multi-gpu.kt -D devices=2
# Room that this leaves can hold routed experts: -D devices=8 -D gpu_experts=3
model DeepseekV3ForCausalLM

include "std/deepseek_v3.kt"

param devices: int = 1 "GPUs to use, at most 8"
param gpu_experts: int = 0 "layers of each GPU, from its last, whose routed experts live there: 6 GiB each"
param context: int = 8192 "tokens of KV cache to reserve"

device gpus = cuda:0..7 (memory = 24GiB, reserve = 1GiB)
device host = cpu (memory = 384GiB)

# What stands outside the layers comes after them: the last norm and the head.
rule everything {
  match  **
  place  gpus[devices - 1]
  quant  q4_k
}

rule layers_in_turn {
  match  @decoder
  place  gpus[layer * devices // layers]
  expect layers
}

# Positions and the rows looked up reach every GPU from the host.
rule front {
  match  @embedding or model.rotary_emb
  place  host
  expect 2
}

rule routed_experts {
  match  @experts
  place  host
  kernel cpu.experts
  expect layers - config.first_k_dense_replace
}

rule experts_on_gpus {
  match  @experts
  where  (layer + gpu_experts) * devices // layers > layer * devices // layers
  place  gpus[layer * devices // layers]
  kernel auto
  expect devices * gpu_experts
}

rule embedding {
  match  @embedding
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

assert peak(gpus) <= memory(gpus), "use more devices, or lower gpu_experts or context"
assert devices < 8 or balance(gpus) < 2, "one GPU holds much more than the others"
assert peak(host) <= memory(host)
