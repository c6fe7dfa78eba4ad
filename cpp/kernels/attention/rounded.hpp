// Attention of many query rows on rounded operands, twice the multiply-adds of floats: queries and keys as
// 16-bit integers (vpdpwssd), weights and values as bf16 (vdpbf16ps). For caches that round what they hold
// anyway.
#pragma once

#include "kernels/attention/tables.hpp"
#include "kernels/latent/tables.hpp"

namespace ktc::kernels {

// Query rows that go through the positions of a tile together: scores and weights stay in L1.
inline constexpr int kRoundedGroup = 24;

// Positions [start, start + count) of one key head, at most kAttentionTile, to be rounded for all rows that
// meet them.
struct RoundedTile {
  CachedRows keys, values;
  Pages pages;
  int64_t start;
  int count;
  float* out;      // rounded_tile floats, 64-byte aligned
  float* scratch;  // rounded_scratch floats of no rows, likewise
};

struct RoundedAttention {
  bool bfloats;  // what weights and values are; else floats
  void (*round)(const RoundedTile& tile);
  void (*attend)(const AttentionTile& tile);
  void (*attend_latent)(const LatentTile& tile);
  void (*attend_expanded)(const ExpandedTile& tile);
};

// Floats of a tile's rounded positions: steps, keys, values.
static constexpr int64_t rounded_tile(int64_t depth, int64_t value_depth, bool bfloats) {
  const int64_t words = (depth + 31) / 32 * 32;
  return kAttentionTile * (1 + words / 2 + (bfloats ? value_depth / 2 : value_depth));
}

// Floats of scratch for `rows` query rows: their codes, steps, highest scores, totals and sums; of a tile's
// positions rows as floats and codes, keys, steps and values; scores and weights of a group. Each of the 13
// may begin a cache line.
static constexpr int64_t rounded_scratch(int64_t rows, int64_t depth, int64_t value_depth) {
  const int64_t words = (depth + 31) / 32 * 32, widest = words > value_depth ? words : value_depth;
  return rows * (words / 2 + 2 + 16 + value_depth) + 32 +
         kAttentionTile * (widest + words + 1 + value_depth + 2 * kRoundedGroup) + 13 * 16;
}

// The same for expanded latents: their rows as floats and codes with steps, the codes of the head's weights.
static constexpr int64_t expanded_rounded_scratch(int64_t tokens, int64_t nope, int64_t rope, int64_t depth,
                                                  int64_t value_depth) {
  return rounded_scratch(tokens, nope + rope, value_depth) + kAttentionTile * (depth + (depth + 32) / 2 + 1) +
         (depth / 2 + 1) * (nope + value_depth) + 7 * 16;
}

#ifdef KTC_X86
extern const RoundedAttention rounded_attention_avx512vnni;
// Where vdpbf16ps is slow: weights and values stay floats.
extern const RoundedAttention word_attention_avx512vnni;
#endif

// What the level in force has for a cache, or null.
const RoundedAttention* rounded_attention(CacheType keys, CacheType values);

}  // namespace ktc::kernels
