rewrite norm {
  pattern {
    sum  = kt.add(x, residual)
    norm = kt.rms_norm(sum, weight, eps = eps)
  }
  replace { norm = kt.layer_norm(sum, weight, eps = eps) }
}
