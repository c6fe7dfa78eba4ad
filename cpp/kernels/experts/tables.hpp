// What experts need beside the linear kernels, one table an instruction set.
#pragma once

#include <cstdint>

namespace ktc::kernels {

// How an expert's gate rows g and up rows u become the input of its down matrix.
enum class Gate : int {
  silu,       // silu(g) * u
  gelu,       // gelu(g) * u, by the error function
  gelu_tanh,  // the same by tanh
  gpt_oss,    // (u + 1) * g * sigmoid(1.702 g), g clamped to at most 7, u to [-7, 7]
};
inline constexpr int kGates = 4;

struct ExpertKernels {
  // 32 gate values and, right behind them, 32 up values of each of `tokens` tokens, 64 floats a token, become
  // one block of activations a token (see ActivationBlock), `stride` bytes apart.
  void (*gate_blocks[kGates])(const float* values, int64_t tokens, uint8_t* out, int64_t stride);
  // The same as floats.
  void (*gate_floats[kGates])(const float* values, int64_t tokens, uint8_t* out, int64_t stride);
  // sums[order[i], rows] += weights[i] * values[i, rows], for `count` values; rows is a multiple of 16.
  void (*accumulate)(const float* values, int64_t count, int64_t rows, const int32_t* order,
                     const float* weights, float* sums);
};

extern const ExpertKernels expert_kernels_generic;
#ifdef KTC_X86
extern const ExpertKernels expert_kernels_avx2;
extern const ExpertKernels expert_kernels_avx512;
#endif

}  // namespace ktc::kernels
