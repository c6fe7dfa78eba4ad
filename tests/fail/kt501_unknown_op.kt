rewrite activation {
  pattern { y = kt.sillu(x) }
  replace { y = kt.gelu(x) }
}
rewrite foreign {
  pattern { y = aten.silu(x) }
  replace { y = kt.gelu(x) }
}
