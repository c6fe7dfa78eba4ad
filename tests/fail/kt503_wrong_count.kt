# model: tiny-llama
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rewrite gated {
  pattern { y = kt.mul(kt.silu(gate), up) }
  replace { y = kt.silu_mul(gate, up) }
  expect 61
}
