// Norms, rotary embedding and elementwise functions over tensors, on the pool.
#pragma once

#include <cstdint>

#include "kernels/vector/tables.hpp"

namespace ktc::kernels {

// Rows of a tensor in two nested dimensions: row (i, j) starts at data + i * outer + j * inner; strides in
// floats.
struct Rows {
  const float* data;
  int64_t outer, inner;

  const float* row(int64_t index, int64_t inner_count) const {
    return data + index / inner_count * outer + index % inner_count * inner;
  }
};

// The kernels on single rows of the level in force, for operators that make rows on their way.
const VectorKernels& vector_kernels();

// y[outer_count * inner_count, n], contiguous; see VectorKernels::rms_norm. `residual.data` and `sum` may be
// null.
void rms_norm(const Rows& x, const Rows& residual, int64_t outer_count, int64_t inner_count, int64_t n,
              const float* weight, float eps, float offset, float* y, float* sum);

void layer_norm(const Rows& x, int64_t outer_count, int64_t inner_count, int64_t n, const float* weight,
                const float* bias, float eps, float* y);

// y[rows, n] contiguous; a and b have rows `a_stride` and `b_stride` floats apart; b may be null.
void elementwise(Elementwise function, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                 int64_t rows, int64_t n, float* y);

// x[heads, tokens, depth] with the strides of `x` (outer: heads, inner: tokens) -> y, contiguous or of the
// same strides when it is x itself; cos and sin [tokens, width].
void rope(const Rows& x, int64_t heads, int64_t tokens, int64_t depth, const float* cos, const float* sin,
          int64_t cos_stride, int64_t width, bool interleaved, float* y, int64_t y_outer, int64_t y_inner);

}  // namespace ktc::kernels
