rewrite norm {
  pattern {
    norm = kt.rms_norm(sum, weight, eps = eps)
    sum  = kt.add(x, residual)
  }
  replace { norm, sum = kt.add_rms_norm(x, residual, weight, eps = eps) }
}
