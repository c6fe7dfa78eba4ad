// Products of matrices of floats and the online softmax (Milakov and Gimelshein 2018), for the vectors of the
// simd/ header included before.
#pragma once

#include "kernels/attention/cached.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr float kNone = -__builtin_inff();

// c[kRows][kVectors * kWidth] = or += a[kRows][depth] * b[depth][...]; strides in floats.
template <int kRows, int kVectors, bool kAdd>
inline void multiply_block(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                           float* c, int64_t c_stride) {
  vf sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[r][j] = kAdd ? vload(c + r * c_stride + j * kWidth) : vzero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    vf row[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) row[j] = vload(b + k * b_stride + j * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const vf x = vset(a[r * a_stride + k]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[r][j] = vfma(x, row[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) vstore(c + r * c_stride + j * kWidth, sum[r][j]);
  }
}

constexpr int kBlockRows = kWidth == 16 ? 6 : kWidth == 8 ? 4 : 2;
constexpr int kBlockVectors = kWidth == 16 ? 4 : 2;

template <int kVectors, bool kAdd>
void multiply_columns(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                      float* c, int64_t c_stride, int64_t rows) {
  int64_t r = 0;
  for (; r + kBlockRows <= rows; r += kBlockRows) {
    multiply_block<kBlockRows, kVectors, kAdd>(a + r * a_stride, a_stride, b, b_stride, depth,
                                               c + r * c_stride, c_stride);
  }
  for (; r + 2 <= rows; r += 2) {
    multiply_block<2, kVectors, kAdd>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride,
                                      c_stride);
  }
  if (r < rows) {
    multiply_block<1, kVectors, kAdd>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride,
                                      c_stride);
  }
}

// c[rows][columns] = or += a[rows][depth] * b[depth][columns]; columns a multiple of kWidth.
template <bool kAdd>
void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* c,
              int64_t c_stride, int64_t rows, int64_t columns) {
  int64_t j = 0;
  for (; j + kBlockVectors * kWidth <= columns; j += kBlockVectors * kWidth) {
    multiply_columns<kBlockVectors, kAdd>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, rows);
  }
  for (; j < columns; j += kWidth)
    multiply_columns<1, kAdd>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, rows);
}

// Turns one row of scores into weights and rescales what was summed before.
inline void update_row(float* scores, int columns, float* highest, float* total, float* sums,
                       int value_depth) {
  vf best = vload(scores);
  for (int j = kWidth; j < columns; j += kWidth) best = vmax(best, vload(scores + j));
  const float top = vhighest(best), before = *highest;
  const float now = top > before ? top : before;
  if (now == kNone) {  // nothing visible so far
    for (int j = 0; j < columns; j += kWidth) vstore(scores + j, vzero());
    return;
  }
  const vf shift = vset(now);
  vf sum = vzero();
  for (int j = 0; j < columns; j += kWidth) {
    const vf weight = vexp(vload(scores + j) - shift);
    vstore(scores + j, weight);
    sum = sum + weight;
  }
  if (now != before) {
    float kept[kWidth];
    vstore(kept, vexp(vset(before) - shift));
    *total *= kept[0];
    *highest = now;
    const vf factor = vset(kept[0]);
    for (int d = 0; d < value_depth; d += kWidth) vstore(sums + d, vload(sums + d) * factor);
  }
  *total += vsum(sum);
}

// Writes a row of `out`: its sums over the total, with the head's sink.
inline void finish_row(const AttentionTile& t, int row, float highest, float total, const float* sums) {
  float factor = 1.0f / total;
  if (t.sinks) {
    const float sink = t.sinks[row / t.tokens];
    const float now = sink > highest ? sink : highest;
    float shifted[kWidth], sinking[kWidth];
    vstore(shifted, vexp(vset(highest - now)));
    vstore(sinking, vexp(vset(sink - now)));
    factor = shifted[0] / (total * shifted[0] + sinking[0]);
  }
  float* out = t.out + row % t.tokens * t.out_token + row / t.tokens * t.value_depth;
  for (int d = 0; d < t.value_depth; d += kWidth) vstore(out + d, vload(sums + d) * vset(factor));
}

}  // namespace
}  // namespace ktc::kernels
