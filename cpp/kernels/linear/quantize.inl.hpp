// Quantises activations to int8 in blocks of 32, for the vectors of the simd/ header included before.
#pragma once

#include "kernels/linear/activations.hpp"

namespace ktc::kernels {
namespace {

inline void quantize_block(const vf (&v)[kBlockColumns / kWidth], ActivationBlock* block) {
  vf largest = vzero();
  bool finite = true;
  for (int i = 0; i < kBlockColumns / kWidth; ++i) {
    largest = vmax(vabs(v[i]), largest);
    finite &= vfinite(v[i]);
  }
  const float highest = vhighest(largest);
  const vf inverse = vset(highest > 0 ? 127.0f / highest : 0.0f);
  for (int i = 0; i < kBlockColumns / kWidth; ++i) {
    const vf code = vmax(vmin(v[i] * inverse, vset(127.0f)), vset(-127.0f));
    vstore_s8(block->codes + i * kWidth, code);  // rounds to nearest
  }
  const int32_t sums[2] = {vsum_s8(block->codes), vsum_s8(block->codes + 16)};
  // A block with an infinity or NaN gets a NaN scale: what is wrong shows in the result.
  const float scale = finite ? highest / 127.0f : __builtin_nanf("");
  const int32_t both = sums[0] + sums[1];
  block->scale = scale;
  block->sum = scale * static_cast<float>(both);
  block->half_sums[0] = scale * static_cast<float>(sums[0]);
  block->half_sums[1] = scale * static_cast<float>(sums[1]);
  block->minus = -both;
  block->half_minus[0] = -sums[0];
  block->half_minus[1] = -sums[1];
  block->unused = 0;
}

[[maybe_unused]] void quantize(const float* x, int64_t columns, uint8_t* record) {
  for (int64_t column = 0; column < columns; column += kBlockColumns) {
    vf v[kBlockColumns / kWidth];
    for (int i = 0; i < kBlockColumns / kWidth; ++i) v[i] = vload(x + column + i * kWidth);
    quantize_block(v, reinterpret_cast<ActivationBlock*>(record) + column / kBlockColumns);
  }
}

}  // namespace
}  // namespace ktc::kernels
