# One model over two devices with budgets of their own; here both are this machine's CPU, so that placement and the
# copies between devices can be seen, and tested, without a GPU. Write `fast = cuda:0` and the rules stay the same.
model LlamaForCausalLM from "../models/SmolLM2-135M-Instruct.Q4_1.gguf"

include "std/llama.kt"

param context: int = 2048 "tokens of KV cache to reserve"
param fast_layers: int = 12 "layers, from the first, that live on the fast device"

device fast = cpu (memory = 256MiB)
device slow = cpu (memory = 2GiB)

rule everything {
  match  **
  place  slow
}

rule first_layers {
  match  @decoder
  where  layer < fast_layers
  place  fast
  expect fast_layers
}

rule attention {
  match  @attention
  cache  paged(dtype = f16, tokens = context)
  expect layers
}

assert peak(fast) <= memory(fast), "lower fast_layers or context"
assert peak(slow) <= memory(slow), "lower context"
