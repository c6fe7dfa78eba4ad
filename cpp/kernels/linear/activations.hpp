// Activations quantised to int8 in blocks of 32, as the integer kernels read them.
#pragma once

#include <cstdint>

namespace ktc::kernels {

// 32 columns of one token in one cache line: x = scale * code. The sums of codes, over the block and over its
// halves, serve weights with minima (as floats) and with offset codes (as integers).
struct ActivationBlock {
  int8_t codes[32];  // -127..127
  float scale;
  float sum;  // scale * sum of the codes
  float half_sums[2];
  int32_t minus;  // minus the sum of the codes
  int32_t half_minus[2];
  int32_t unused;
};
static_assert(sizeof(ActivationBlock) == 64);

inline constexpr int kBlockColumns = 32;

// Bytes from one token's record, columns / 32 blocks, to the next. Records a multiple of 4 KiB apart would
// fall into the same sets of the caches.
static constexpr int64_t activation_record(int64_t columns) {
  const int64_t bytes = columns / kBlockColumns * int64_t{sizeof(ActivationBlock)};
  return bytes % 4096 == 0 ? bytes + 64 : bytes;
}

}  // namespace ktc::kernels
