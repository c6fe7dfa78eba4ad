// Activations quantised to int8 in blocks of 32, as the integer kernels read them.
#pragma once

#include <cstdint>

namespace ktc::kernels {

// One token's record: its planes behind one another. c = columns, a multiple of 32; each plane starts at a
// multiple of 4.
//   codes   int8[c]        -127..127
//   scales  float[c / 32]  x = scale * code
//   sums32  float[c / 32]  scale * sum of the block's codes
//   sums16  float[c / 16]  the same over half blocks
//   minus32 int32[c / 32]  minus the sum of the block's codes
//   minus16 int32[c / 16]  the same over half blocks
// The kinds of sums serve weights with minima (floats) and with offset codes (integers).
struct ActivationPlanes {
  int64_t scales, sums32, sums16, minus32, minus16;
  int64_t record;  // bytes from one token's record to the next
};

static constexpr ActivationPlanes activation_planes(int64_t columns) {
  const int64_t blocks = columns / 32;
  ActivationPlanes planes{};
  planes.scales = columns;
  planes.sums32 = planes.scales + 4 * blocks;
  planes.sums16 = planes.sums32 + 4 * blocks;
  planes.minus32 = planes.sums16 + 8 * blocks;
  planes.minus16 = planes.minus32 + 4 * blocks;
  const int64_t bytes = (planes.minus16 + 8 * blocks + 63) / 64 * 64;
  // Records a multiple of 4 KiB apart would fall into the same sets of the caches.
  planes.record = bytes % 4096 == 0 ? bytes + 64 : bytes;
  return planes;
}

}  // namespace ktc::kernels
