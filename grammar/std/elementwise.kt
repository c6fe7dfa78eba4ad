# Neighbours that pass over the same memory, fused into one pass: residual add + RMSNorm, gated activations.
# Every rewrite here says `expect any`: a library does not know the model it is included for.

# The sum of a block's output and the residual stream, and the norm that opens the next block.
rewrite add_rms_norm {
  pattern {
    sum  = kt.add(x: T[*, d], residual: T[*, d])
    norm = kt.rms_norm(sum, weight: T[d], eps = eps, offset = offset)
  }
  replace {
    norm, sum = kt.add_rms_norm(x, residual, weight, eps = eps, offset = offset)
  }
  expect any
}

# SwiGLU (Llama, Qwen, DeepSeek): silu(gate) * up.
rewrite silu_mul {
  pattern { y = kt.mul(kt.silu(gate: T[**]), up: T[**]) }
  replace { y = kt.silu_mul(gate, up) }
  expect any
}

# GeGLU (Gemma): gelu(gate) * up.
rewrite gelu_mul {
  pattern { y = kt.mul(kt.gelu(gate: T[**], approximate = approximate), up: T[**]) }
  replace { y = kt.gelu_mul(gate, up, approximate = approximate) }
  expect any
}
