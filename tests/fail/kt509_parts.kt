rewrite two {
  pattern {
    a = kt.silu(x)
    b = kt.silu(y)
  }
  replace {
    a = kt.gelu(x)
    b = kt.gelu(y)
  }
}
