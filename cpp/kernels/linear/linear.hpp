// y = x * weight^T + bias over packed weights.
#pragma once

#include <cstdint>

#include "kernels/packed/format.hpp"

namespace ktc::kernels {

struct TileKernels;

// y[tokens, rows] = x[tokens, columns] * weight^T + bias[rows] (or null).
//
// Quantised weights meet activations quantised to int8 in blocks of 32 columns (Q8 blocks with float scales);
// from kGroupTokens tokens on, where a level has kernels for that, k-quants, Q4_1 and Q5_1 meet them in
// groups of 256, whose blocks have scales that are small integers times one float (ActivationGroup);
// float weights meet them as they are, or from 3 tokens on, where a level multiplies bf16 (avx512vnni), bf16
// and fp8 weights meet them rounded to bf16; sums are float32. `x_stride` and `y_stride` are floats between
// tokens. x and y do not overlap. The result does not depend on the number of threads; with quantised
// weights, a token's does not depend on the other tokens or on how many there are either, except across
// kGroupTokens and, on a level with tiles, across TileKernels::least_tokens: from so many tokens on they
// round both sides to bf16 instead.
void linear(const PackedWeight& weight, const float* x, int64_t x_stride, int64_t tokens, const float* bias,
            float* y, int64_t y_stride);

// The two steps of the above, for callers who multiply the same activations with several weights: of
// `format`, or of any of which takes_groups says the same.
int64_t activation_bytes(int64_t tokens, int64_t columns);
void quantize_activations(Format format, const float* x, int64_t x_stride, int64_t tokens, int64_t columns,
                          uint8_t* records);
// The same, for tiles or, where they are null, for the integer kernels: in groups or in blocks.
void quantize_activations(const float* x, int64_t x_stride, int64_t tokens, int64_t columns, uint8_t* records,
                          const TileKernels* tiles, bool groups);
// The first of them for activations that are made on the way and need not be anywhere: make(context, token,
// row) writes a token's columns. False, with nothing done, on a level that takes activations as a whole
// (tiles).
struct RowMaker {
  void (*make)(const void* context, int64_t token, float* row);
  const void* context;
};
bool quantize_made(Format format, const RowMaker& maker, int64_t tokens, int64_t columns, uint8_t* records);
void linear_quantized(const PackedWeight& weight, const uint8_t* records, int64_t tokens, const float* bias,
                      float* y, int64_t y_stride);

}  // namespace ktc::kernels
