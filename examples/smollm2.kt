# SmolLM2-135M-Instruct on one CPU, in the number formats of its GGUF file. `make demo` puts the weights where `from`
# looks for them, compiles this file and prints an answer.
model LlamaForCausalLM from "../models/SmolLM2-135M-Instruct.Q4_1.gguf"

include "std/llama.kt"

param context: int = 2048 "tokens of KV cache to reserve"

device host = cpu (memory = 2GiB)

rule everything {
  match  **
  place  host
}

rule attention {
  match  @attention
  kernel cpu.attention
  cache  paged(dtype = f16, tokens = context)
  expect layers
}

assert peak(host) <= memory(host), "lower context"
