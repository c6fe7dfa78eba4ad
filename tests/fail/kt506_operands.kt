rewrite a {
  pattern { y = kt.rms_norm(x, w, eps) }
  replace { y = kt.rms_norm(x, w, eps = 0.0) }
}
rewrite b {
  pattern { y = kt.rms_norm(x, w, epsilon = eps) }
  replace { y = kt.silu(x) }
}
rewrite c {
  pattern { y = kt.gelu(x, approximate = 3) }
  replace { y = kt.silu(4) }
}
