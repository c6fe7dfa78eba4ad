# Linears that read the same input, merged into one: their weights are concatenated row by row and the result is split,
# so that the input is read, and quantised, once. Weights of different number formats are left apart.

# Gate and up of a gated MLP or of shared experts, found by the activation that joins them: include elementwise.kt first.
rewrite merge_gate_up_silu {
  pattern {
    gate = kt.linear(x, w_gate)
    up   = kt.linear(x, w_up)
    y    = kt.silu_mul(gate, up)
  }
  where same_format(w_gate, w_up)
  replace {
    gate_up    = kt.linear(x, kt.concat(w_gate, w_up, dim = 0))
    gate1, up1 = kt.split(gate_up, rows(w_gate), rows(w_up))
    y          = kt.silu_mul(gate1, up1)
  }
  expect any
}

rewrite merge_gate_up_gelu {
  pattern {
    gate = kt.linear(x, w_gate)
    up   = kt.linear(x, w_up)
    y    = kt.gelu_mul(gate, up, approximate = approximate)
  }
  where same_format(w_gate, w_up)
  replace {
    gate_up    = kt.linear(x, kt.concat(w_gate, w_up, dim = 0))
    gate1, up1 = kt.split(gate_up, rows(w_gate), rows(w_up))
    y          = kt.gelu_mul(gate1, up1, approximate = approximate)
  }
  expect any
}

# Queries, keys and values. After gate and up: those of shared experts read the same input as a third linear, their gate.
rewrite merge_qkv {
  pattern {
    q = kt.linear(x, wq)
    k = kt.linear(x, wk)
    v = kt.linear(x, wv)
  }
  where same_format(wq, wk, wv) and rows(wk) == rows(wv) and rows(wq) % rows(wk) == 0
  replace {
    qkv     = kt.linear(x, kt.concat(wq, wk, wv, dim = 0))
    q, k, v = kt.split(qkv, rows(wq), rows(wk), rows(wv))
  }
  expect any
}

# The same with biases (Qwen2).
rewrite merge_qkv_bias {
  pattern {
    q = kt.linear(x, wq, bq)
    k = kt.linear(x, wk, bk)
    v = kt.linear(x, wv, bv)
  }
  where same_format(wq, wk, wv) and rows(wk) == rows(wv) and rows(wq) % rows(wk) == 0
  replace {
    qkv     = kt.linear(x, kt.concat(wq, wk, wv, dim = 0), kt.concat(bq, bk, bv, dim = 0))
    q, k, v = kt.split(qkv, rows(wq), rows(wk), rows(wv))
  }
  expect any
}
