// Eight sub-blocks side by side: the vector type and helpers of the k-format quantisers.
//
// GCC's and Clang's vector extension compiles to whatever the level has, in one order of operations, so that
// results do not depend on the level. Everything has internal linkage: for sources with an instruction-set
// suffix.
#pragma once

#include <cstdint>

namespace ktc {
namespace {

using Lanes = float __attribute__((vector_size(32)));
using Mask = int32_t __attribute__((vector_size(32)));
constexpr int kLanes = 8;

#define KTC_INLINE [[maybe_unused, gnu::always_inline]] static inline

KTC_INLINE Lanes splat(float x) {
  return Lanes{x, x, x, x, x, x, x, x};
}
KTC_INLINE Lanes select(Mask mask, Lanes yes, Lanes no) {
  return mask ? yes : no;
}
KTC_INLINE Lanes smaller(Lanes a, Lanes b) {
  return a < b ? a : b;
}
KTC_INLINE Lanes larger(Lanes a, Lanes b) {
  return a > b ? a : b;
}
KTC_INLINE Lanes magnitude(Lanes a) {
  return a < 0.0f ? -a : a;
}

// The nearest integer in [low, high], ties to even; bounds within +-2^21.
KTC_INLINE Lanes nearest(Lanes x, float low, float high) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the sum has no fraction bits left
  return (larger(splat(low), smaller(splat(high), x)) + kMagic) - kMagic;
}

// a / b, and 0 where b is 0.
KTC_INLINE Lanes ratio(Lanes a, Lanes b) {
  const Mask zero = b == 0.0f;
  return select(zero, splat(0.0f), a / select(zero, splat(1.0f), b));
}

KTC_INLINE float sum(Lanes a) {
  return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
}

KTC_INLINE float highest(Lanes a) {
  float top = a[0];
  for (int i = 1; i < kLanes; ++i) top = a[i] > top ? a[i] : top;
  return top;
}

// out[j] lane s = in[s * length + j]: sub-block s of `length` values goes to lane s.
KTC_INLINE void to_lanes(const float* in, int length, Lanes* out) {
  for (int j = 0; j < length; ++j) {
    for (int s = 0; s < kLanes; ++s) out[j][s] = in[s * length + j];
  }
}

}  // namespace
}  // namespace ktc
