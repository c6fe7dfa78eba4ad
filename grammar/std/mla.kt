# Multi-head latent attention with absorbed projections (DeepSeek-V2, 2024, section 2.1.2).
#
# As trained, each layer expands its latent to keys and values of every head (kv_b_proj) and caches those. A head's score is
# linear in the latent, so the expansion can move to the query and to the result: the cache then holds the latent and one
# rotated key a token, whatever the number of heads, and decoding reads nothing else. For DeepSeek-V3 in 16 bits that is
# 68.6 KiB a token instead of 4.8 MiB. The numbers are the same up to rounding.
#
# kv_b_proj is read through two views: [heads, latent, nope] for keys and [heads, value, latent] for values. The keys' view
# transposes: a weight that is quantised in its file is float32 there, unless a `quant` rule says otherwise, and a format
# must divide `nope` (128 in DeepSeek's models: q8_0 does, the K formats with blocks of 256 do not).
rewrite mla {
  pattern {
    kv      = kt.linear(latent, w_kv_b)
    q, k, v = kt.mla_expand(q_nope: T[1, heads, tokens, nope], q_rope, kv, k_rope)
    out     = kt.attention(
      q,
      k,
      v,
      key_cache,
      value_cache,
      seq_starts,
      context_lens,
      block_tables,
      slots,
      scale = scale,
    )
  }
  replace {
    out = kt.mla_attention(
      q_nope,
      q_rope,
      latent,
      k_rope,
      kt.mla_key_weight(w_kv_b, heads = heads, nope = nope),
      kt.mla_value_weight(w_kv_b, heads = heads, nope = nope),
      key_cache,
      value_cache,
      seq_starts,
      context_lens,
      block_tables,
      slots,
      scale = scale,
    )
  }
  expect any
}

# The two products that latent attention begins with, where queries have a latent of their own (q_lora), or none.
rewrite merge_q_kv_latent {
  pattern {
    q               = kt.linear(x, w_q)
    kv              = kt.linear(x, w_kv_a)
    latent, rotated = kt.split(kv, sizes = sizes)
  }
  where same_format(w_q, w_kv_a)
  replace {
    q_kv            = kt.linear(x, kt.concat(w_q, w_kv_a, dim = 0))
    q, kv           = kt.split(q_kv, rows(w_q), rows(w_kv_a))
    latent, rotated = kt.split(kv, sizes = sizes)
  }
  expect any
}
