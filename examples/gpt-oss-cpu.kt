# GPT-OSS-120B (36 layers, 128 experts, 4 of them a token) on the CPU alone. Its experts were trained in MXFP4 and stay so;
# the model is 2880 wide, no multiple of the 256 elements of the K formats, so the rest is in 8 bits.
#   ktc plan --no-weights --model examples/configs/gpt-oss-120b examples/gpt-oss-cpu.kt
model GptOssForCausalLM

include "std/gpt_oss.kt"

param context: int = 8192 "tokens of KV cache to reserve"

device host = cpu (memory = 72GiB)

rule everything {
  match  **
  place  host
  quant  q8_0
}

rule experts {
  match  @experts
  quant  mxfp4
  kernel cpu.experts
  expect layers
}

# Routing decides everything downstream: keep it exact.
rule router {
  match  @router
  quant  f32
  expect layers
}

# Every second layer attends to the last 128 positions only, and every head to a sink.
rule attention {
  match  @attention
  cache  paged(dtype = bf16, tokens = context)
  expect layers
}

assert peak(host) <= memory(host), "lower context"
