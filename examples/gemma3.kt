# Gemma 3 270M on one CPU. Five of six layers attend to a sliding window, norms surround both blocks, and the
# embedding, shared with the head, holds more than half of the weights. `make models` unpacks the file.
model Gemma3ForCausalLM from "../models/gemma-3-270m.Q4_K_M.gguf"

include "std/gemma3.kt"

param context: int = 2048 "tokens of KV cache to reserve"

device host = cpu (memory = 2GiB)

rule everything {
  match  **
  place  host
}

# The formats of the file stay as they are: quantising anew would only lose accuracy.
rule attention {
  match  @attention
  cache  paged(dtype = f16, tokens = context)
  expect layers
}

assert peak(host) <= memory(host), "lower context"
