rewrite r {
  pattern { y = kt.silu(x: T[*, d, *]) }
  replace { y = kt.gelu(x) }
}
