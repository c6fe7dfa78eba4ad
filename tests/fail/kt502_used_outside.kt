# model: tiny-llama
model LlamaForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rewrite lost_sum {
  pattern {
    sum  = kt.add(x, residual)
    norm = kt.rms_norm(sum, weight, eps = eps)
  }
  replace { norm = kt.rms_norm(x, weight, eps = eps) }
  expect 2 * layers
}
