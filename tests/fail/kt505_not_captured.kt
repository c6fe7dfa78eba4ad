rewrite gate {
  pattern { y = kt.mul(kt.silu(gate), up) }
  replace { y = kt.silu_mul(gat, up) }
}
