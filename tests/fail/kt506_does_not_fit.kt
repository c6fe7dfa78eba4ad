# model: tiny-qwen-moe
model Qwen3MoeForCausalLM
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rewrite too_many {
  pattern { weights, indices = kt.router(logits, top_k = trained, normalize = true) }
  replace { weights, indices = kt.router(logits, top_k = 4 * trained, normalize = true) }
}
