// Activations quantised to int8, as the integer kernels read them: in blocks of 32, or in groups of 256.
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

// 256 columns of one token: x = scale * level * code, where a block of 32 has its level: 1, 2, 3, 4, 6, 8, 12
// or 16, which is 2^shift, plus 2^more where that is below kNoMore. So products can be summed over the group
// as integers, and blocks far smaller than the largest keep most of their precision. The codes of 16 columns
// add up to at most 1023, whatever their signs: then a product with codes of weights from -32 to 32, of 16
// columns, or with ones up to 15, of 32 columns, fits 16 bits.
struct ActivationGroup {
  int8_t codes[256];  // -127..127; zeros behind the last column
  // By what the weight's scales span; pairs are of int16, the lower one first.
  float scale;
  int32_t pair_shifts[4];  // of two blocks
  int32_t pair_sums[4];    // their sums of codes * level
  int32_t pair_more[4];
  int32_t unused[3];

  int32_t half_shifts[8];  // the block's shift, for both of its halves
  int32_t half_starts[8];  // 2^15 - 32 * (sum of the codes of the lower half + 2^16 * of the upper one)

  int32_t half_more[8];
  float sums[8];  // of the codes of a block * level

  int32_t shifts[8];     // of a block
  int32_t half_sums[8];  // sums of codes of the halves * level
};
static_assert(sizeof(ActivationGroup) == 512);
inline constexpr int64_t kGroupBytes = sizeof(ActivationGroup);

inline constexpr int kGroupColumns = 256;
inline constexpr int kGroupShift = 4;  // the largest
inline constexpr int kNoMore = 63;     // shifts everything out
// What magnitudes of 16 columns may add up to, in codes, before each is rounded: so that 16 equal ones are
// exact.
inline constexpr int kHalfCodes = 16 * 63;

// Bytes of the blocks of one token, and from one token's to the next one's: records a multiple of 4 KiB apart
// would fall into the same sets of the caches. As many hold its groups, but those lie by columns: the first
// groups of all tokens, then the second ones, and so on.
static constexpr int64_t activation_record(int64_t columns) {
  const int64_t groups = (columns + kGroupColumns - 1) / kGroupColumns;
  const int64_t bytes = groups * int64_t{sizeof(ActivationGroup)};
  return bytes % 4096 == 0 ? bytes + 64 : bytes;
}

}  // namespace ktc::kernels
