rewrite unbound {
  pattern { y = kt.mul(kt.silu(gate), up) }
  replace { z = kt.silu_mul(gate, up) }
}
rewrite too_few {
  pattern {
    sum  = kt.add(x, residual)
    norm = kt.rms_norm(sum, weight, eps = eps)
  }
  replace { norm = kt.add_rms_norm(x, residual, weight, eps = eps) }
}
rewrite parts {
  pattern { y = kt.linear(x, w) }
  replace {
    a    = kt.linear(x, w)
    y, z = kt.split(a, 1, 2, 3)
  }
}
rewrite rebound {
  pattern { y = kt.silu(x) }
  replace {
    x = kt.gelu(x)
    y = kt.gelu(x)
  }
}
