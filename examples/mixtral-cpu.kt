# Mixtral 8x7B and 8x22B on the CPU alone: eight large experts a layer, two of them a token.
#   ktc plan --no-weights --model examples/configs/mixtral-8x7b examples/mixtral-cpu.kt
#   ktc plan --no-weights --model examples/configs/mixtral-8x22b examples/mixtral-cpu.kt -D ram=96GiB
model MixtralForCausalLM

include "std/mixtral.kt"

param context: int = 8192 "tokens of KV cache to reserve"
param ram: size = 32GiB "memory of the host"

device host = cpu (memory = ram)

# Attention is a thirtieth of the model: 8 bits there cost next to nothing.
rule everything {
  match  **
  place  host
  quant  q8_0
}

rule experts {
  match  @experts
  quant  q4_k
  kernel cpu.experts
  expect layers
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

assert peak(host) <= memory(host), "lower context or raise ram"
