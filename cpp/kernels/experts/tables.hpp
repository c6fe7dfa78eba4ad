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

// What follows products on tiles (TileCall in linear/tables.hpp).
struct TileExpertKernels {
  // The sums [2 bands, 16 tokens, 16 rows] of 32 gate rows and of 32 up rows of a group of tokens become
  // their tile of the activations of the down matrix. Biases, of 32 rows each, or null.
  void (*gate[kGates])(const float* gate_sums, const float* up_sums, int tokens, const float* gate_bias,
                       const float* up_bias, uint8_t* tile);
  // y[rows] += weight * (sums + bias) for the 32 rows of each of `panels` panels of one token. Sums of
  // neighbouring panels are `stride` floats apart, their bands 256; panel i has the rows from rows[i] on.
  void (*add)(const float* sums, int64_t stride, int64_t panels, const int32_t* rows, float weight,
              const float* bias, float* y);
};

extern const ExpertKernels expert_kernels_generic;
#ifdef KTC_X86
extern const ExpertKernels expert_kernels_avx2;
extern const ExpertKernels expert_kernels_avx512;
#endif
#ifdef KTC_AMX
extern const TileExpertKernels tile_expert_kernels_amx;
#endif

// The table of the level in force.
const ExpertKernels& expert_kernels();
// Those of a level with tiles, else null.
const TileExpertKernels* tile_expert_kernels();

}  // namespace ktc::kernels
