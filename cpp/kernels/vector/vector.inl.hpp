// Norms, rotary embedding and elementwise functions for the vectors of the simd/ header included before.
#pragma once

#include "kernels/vector/tables.hpp"

namespace ktc::kernels {
namespace {

// Calls body(i, count) for pieces of kWidth elements and a last shorter one.
template <typename Body>
inline void pieces(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) body(i, kWidth);
  if (i < n) body(i, static_cast<int>(n - i));
}
inline vf load(const float* p, int n) {
  return n == kWidth ? vload(p) : vload_n(p, n);
}
inline void store(float* p, vf v, int n) {
  if (n == kWidth) {
    vstore(p, v);
  } else {
    vstore_n(p, v, n);
  }
}

void rms_norm(const float* x, const float* residual, const float* weight, float eps, float offset, int64_t n,
              float* y, float* sum) {
  vf squares[2] = {vzero(), vzero()};
  if (residual) {
    pieces(n, [&](int64_t i, int count) {
      const vf v = load(x + i, count) + load(residual + i, count);
      store(sum + i, v, count);
      squares[0] = vfma(v, v, squares[0]);
    });
    x = sum;
  } else {
    int64_t i = 0;
    for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
      const vf a = vload(x + i), b = vload(x + i + kWidth);
      squares[0] = vfma(a, a, squares[0]);
      squares[1] = vfma(b, b, squares[1]);
    }
    pieces(n - i, [&](int64_t j, int count) {
      const vf v = load(x + i + j, count);
      squares[0] = vfma(v, v, squares[0]);
    });
  }
  const float mean = vsum(squares[0] + squares[1]) / static_cast<float>(n);
  const vf inverse = vset(1.0f / __builtin_sqrtf(mean + eps)), shift = vset(offset);
  pieces(n, [&](int64_t i, int count) {
    store(y + i, load(x + i, count) * inverse * (shift + load(weight + i, count)), count);
  });
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y) {
  vf total = vzero();
  pieces(n, [&](int64_t i, int count) { total = total + load(x + i, count); });
  const vf mean = vset(vsum(total) / static_cast<float>(n));
  vf squares = vzero();
  pieces(n, [&](int64_t i, int count) {
    const vf d = load(x + i, count) - mean;
    if (count == kWidth) {
      squares = vfma(d, d, squares);
    } else {
      // Lanes beyond the end hold -mean, which must not count.
      float lanes[kWidth];
      vstore(lanes, d);
      float rest = 0;
      for (int j = 0; j < count; ++j) rest += lanes[j] * lanes[j];
      vf one = vzero();
      lanes[0] = rest;
      one = vload_n(lanes, 1);
      squares = squares + one;
    }
  });
  const float variance = vsum(squares) / static_cast<float>(n);
  const vf inverse = vset(1.0f / __builtin_sqrtf(variance + eps));
  pieces(n, [&](int64_t i, int count) {
    const vf added = bias ? load(bias + i, count) : vzero();
    store(y + i, vfma((load(x + i, count) - mean) * inverse, load(weight + i, count), added), count);
  });
}

template <Elementwise kFunction>
void elementwise(const float* a, const float* b, int64_t n, float* y) {
  pieces(n, [&](int64_t i, int count) {
    const vf u = load(a + i, count);
    vf v;
    if constexpr (kFunction == Elementwise::add) v = u + load(b + i, count);
    if constexpr (kFunction == Elementwise::mul) v = u * load(b + i, count);
    if constexpr (kFunction == Elementwise::silu) v = vsilu(u);
    if constexpr (kFunction == Elementwise::gelu_erf) v = vgelu_erf(u);
    if constexpr (kFunction == Elementwise::gelu_tanh) v = vgelu_tanh(u);
    if constexpr (kFunction == Elementwise::silu_mul) v = vsilu(u) * load(b + i, count);
    if constexpr (kFunction == Elementwise::gelu_erf_mul) v = vgelu_erf(u) * load(b + i, count);
    if constexpr (kFunction == Elementwise::gelu_tanh_mul) v = vgelu_tanh(u) * load(b + i, count);
    store(y + i, v, count);
  });
}

void rope(const float* x, const float* cos, const float* sin, int64_t width, int64_t depth, bool interleaved,
          float* y) {
  const int64_t half = width / 2;
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = a * cos[i] - b * sin[i];
      y[2 * i + 1] = b * cos[i] + a * sin[i];
    }
  } else {
    pieces(half, [&](int64_t i, int count) {
      const vf a = load(x + i, count), b = load(x + half + i, count);
      const vf low = a * load(cos + i, count) - b * load(sin + i, count);
      const vf high = b * load(cos + i, count) + a * load(sin + i, count);
      store(y + i, low, count);
      store(y + half + i, high, count);
    });
  }
  if (y != x && width < depth) {
    pieces(depth - width,
           [&](int64_t i, int count) { store(y + width + i, load(x + width + i, count), count); });
  }
}

#define KTC_VECTOR_KERNELS                                                                        \
  {rms_norm,                                                                                      \
   layer_norm,                                                                                    \
   {elementwise<Elementwise::add>, elementwise<Elementwise::mul>, elementwise<Elementwise::silu>, \
    elementwise<Elementwise::gelu_erf>, elementwise<Elementwise::gelu_tanh>,                      \
    elementwise<Elementwise::silu_mul>, elementwise<Elementwise::gelu_erf_mul>,                   \
    elementwise<Elementwise::gelu_tanh_mul>},                                                     \
   rope}

}  // namespace
}  // namespace ktc::kernels
