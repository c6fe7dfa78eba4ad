// Quantises activations to int8 in blocks of 32, for the vectors of the simd/ header included before.
#pragma once

#include "kernels/linear/activations.hpp"

namespace ktc::kernels {
namespace {

void quantize(const float* x, int64_t columns, uint8_t* record) {
  const ActivationPlanes planes = activation_planes(columns);
  for (int64_t block = 0; block < columns / 32; ++block) {
    const float* from = x + 32 * block;
    vf v[32 / kWidth], largest = vzero(), zero_or_nan = vzero();
    for (int i = 0; i < 32 / kWidth; ++i) {
      v[i] = vload(from + i * kWidth);
      largest = vmax(vabs(v[i]), largest);
      zero_or_nan = vfma(v[i], vzero(), zero_or_nan);
    }
    const float highest = vhighest(largest);
    const vf inverse = vset(highest > 0 ? 127.0f / highest : 0.0f);
    int32_t sums[2];
    for (int half = 0; half < 2; ++half) {
      vf total = vzero();
      for (int i = half * 16 / kWidth; i < (half + 1) * 16 / kWidth; ++i) {
        const vf code = vmax(vmin(vround(v[i] * inverse), vset(127.0f)), vset(-127.0f));
        vstore_s8(reinterpret_cast<int8_t*>(record) + 32 * block + i * kWidth, code);
        total = total + code;
      }
      sums[half] = static_cast<int32_t>(vsum(total));
    }
    // A block with an infinity or NaN gets a NaN scale: what is wrong shows in the result.
    const float scale = highest / 127.0f + vsum(zero_or_nan);
    const int32_t both = sums[0] + sums[1];
    const float floats[4] = {scale, scale * static_cast<float>(both), scale * static_cast<float>(sums[0]),
                             scale * static_cast<float>(sums[1])};
    const int32_t minus[3] = {-both, -sums[0], -sums[1]};
    __builtin_memcpy(record + planes.scales + 4 * block, floats, 4);
    __builtin_memcpy(record + planes.sums32 + 4 * block, floats + 1, 4);
    __builtin_memcpy(record + planes.sums16 + 8 * block, floats + 2, 8);
    __builtin_memcpy(record + planes.minus32 + 4 * block, minus, 4);
    __builtin_memcpy(record + planes.minus16 + 8 * block, minus + 1, 8);
  }
}

}  // namespace
}  // namespace ktc::kernels
