# model: tiny-llama
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rewrite short_steps {
  pattern { y = kt.silu(x: T[1, steps, d]) }
  where steps < 16
  replace { y = kt.gelu(x) }
}
