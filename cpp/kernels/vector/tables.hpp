// Kernels on one row or a run of floats, one table an instruction set.
#pragma once

#include <cstdint>

namespace ktc::kernels {

// What an elementwise kernel computes; `b` is null for the functions of one operand.
enum class Elementwise : int { add, mul, silu, gelu_erf, gelu_tanh, silu_mul, gelu_erf_mul, gelu_tanh_mul };
inline constexpr int kElementwise = 8;

struct VectorKernels {
  // y = x / rms(x) * (offset + weight) over n elements; with `residual`, x + residual is normed and written
  // to `sum`.
  void (*rms_norm)(const float* x, const float* residual, const float* weight, float eps, float offset,
                   int64_t n, float* y, float* sum);
  // y = (x - mean) / sqrt(variance + eps) * weight + bias (or null).
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y);
  // y = f(a) or f(a, b) over n elements.
  void (*elementwise[kElementwise])(const float* a, const float* b, int64_t n, float* y);
  // Rotates one head: pairs (i, i + width / 2), or (2i, 2i + 1) when interleaved, by cos[i] and sin[i];
  // elements from `width` on are copied. y may be x.
  void (*rope)(const float* x, const float* cos, const float* sin, int64_t width, int64_t depth,
               bool interleaved, float* y);
};

extern const VectorKernels vector_kernels_generic;
#ifdef KTC_X86
extern const VectorKernels vector_kernels_avx2;
extern const VectorKernels vector_kernels_avx512;
#endif

}  // namespace ktc::kernels
