// What the integer linear kernels share; for the vectors of the simd/ header included before.
//
// A tile's integer dot product is exact; it starts from minus the codes' offset times the activations' sum,
// so that an offset costs nothing. Per tile and row: sum += (scale_w * scale_x) * float(dot) + min_w *
// (scale_x * sum_x). Tiles are added in the order of the columns by every kernel, so that a result does not
// depend on which of them ran.
#pragma once

#include "kernels/linear/activations.hpp"
#include "kernels/linear/quantize.inl.hpp"
#include "kernels/linear/rows.inl.hpp"
#include "kernels/linear/tables.hpp"
#include "kernels/packed/tile.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr int smaller(int a, int b) {
  return a < b ? a : b;
}

// What the inner loops need to know of a format.
template <Format kFormat>
struct Traits {
  static constexpr Spec s = spec(kFormat);
  static constexpr int halves = 32 / scale_columns(s.scales);
  static constexpr bool min = has_min(s.scales);
  static constexpr bool offset_in_dot = kSignedBytes && s.offset_log2 == 7;
  static constexpr int shift = offset_in_dot ? -1 : s.offset_log2;  // of the offset that sums start from
  static constexpr int group = dot_group(s.largest);
};

template <bool kSigned>
inline vp dot_either(vp sum, vb codes, vb x) {
  if constexpr (kSigned) return dot_signed(sum, codes, x);
  return dot(sum, codes, x);
}

inline const ActivationBlock* record(const LinearCall& call, int64_t token) {
  const int64_t index = call.order ? call.order[token] : token;
  return reinterpret_cast<const ActivationBlock*>(call.x + index * call.x_stride);
}

// Of the block's half, or of all of it where a tile has one scale.
template <int kHalves>
inline float sum_of(const ActivationBlock& block, int half) {
  return kHalves == 1 ? block.sum : block.half_sums[half];
}
template <int kHalves>
inline int32_t minus_of(const ActivationBlock& block, int half) {
  return kHalves == 1 ? block.minus : block.half_minus[half];
}

#define KTC_EACH_INTEGER_FORMAT(kernel)                                                         \
  nullptr, nullptr, nullptr, kernel<Format::q4_0>, kernel<Format::q4_1>, kernel<Format::q5_0>,  \
      kernel<Format::q5_1>, kernel<Format::q8_0>, kernel<Format::q2_k>, kernel<Format::q3_k>,   \
      kernel<Format::q4_k>, kernel<Format::q5_k>, kernel<Format::q6_k>, kernel<Format::iq4_nl>, \
      kernel<Format::iq4_xs>, kernel<Format::mxfp4>, nullptr

}  // namespace
}  // namespace ktc::kernels
