// The kernels behind kernels::latent_attention, one table an instruction set.
#pragma once

#include <cstdint>

#include "formats/format.hpp"
#include "kernels/attention/attention.hpp"

namespace ktc::kernels {

// Most query rows (heads times tokens) of one tile of absorbed work.
inline constexpr int kLatentRows = 64;
// Query rows that go through the expanded keys of a tile together.
inline constexpr int kExpandedRows = 48;

// Absorbed queries of `tokens` tokens and `heads` heads against cached positions [begin, pages.end) of one
// sequence. Row r is token r / heads and head r % heads.
struct LatentTile {
  HeadRows q_latent;  // [heads, tokens, latents.depth]
  HeadRows q_rope;    // [heads, tokens, rotated.depth]
  int heads, tokens;
  CachedRows latents, rotated;
  Pages pages;
  int64_t begin;
  int64_t position;  // of token 0
  float scale;
  // A part of the result: sums of latents[tokens][heads][latents.depth], with `sums_token` floats between
  // tokens, and the highest score and the sum of weights[tokens][heads][2], `stats_token` floats between
  // tokens.
  float *sums, *stats;
  int64_t sums_token, stats_token;
  float* scratch;  // latent_scratch floats, 64-byte aligned
};

static constexpr int64_t latent_scratch(int64_t rows, int64_t depth, int64_t rope) {
  // queries, scores, sums, highest, total; keys transposed and latents of one tile.
  return rows * (2 * depth + rope + kAttentionTile + 2) + kAttentionTile * (2 * depth + rope) + 64;
}

// Queries of `tokens` tokens and one head against cached positions [0, pages.end), whose keys and values are
// expanded tile by tile.
struct ExpandedTile {
  const float *q_nope, *q_rope;  // of token 0
  int64_t q_nope_token, q_rope_token;
  int tokens, nope, value_depth;  // nope and value_depth: multiples of 16
  const float* keys;              // [nope][latents.depth]
  const float* values;            // [latents.depth][value_depth]
  CachedRows latents, rotated;
  Pages pages;
  int64_t position;  // of token 0
  float scale;
  float* out;  // [tokens][value_depth], `out_token` floats between tokens
  int64_t out_token;
  float* scratch;  // expanded_scratch floats, 64-byte aligned
};

static constexpr int64_t expanded_scratch(int64_t tokens, int64_t nope, int64_t rope, int64_t depth,
                                          int64_t value_depth) {
  // queries, sums, highest, total; latents in both orders, keys and values of one tile; scores.
  return tokens * (nope + rope + value_depth + 2) +
         kAttentionTile * (2 * depth + nope + rope + value_depth + kExpandedRows) + 64;
}

// A packed weight [rows, columns] as floats out[columns][rows]; rows a multiple of 16.
using UnpackTransposed = void (*)(const uint8_t* packed, int64_t rows, int64_t columns, float* out);

struct LatentKernels {
  // As in AttentionKernels.
  void (*write_cache)(const float* from, int64_t n, CacheType type, uint8_t* to, uint8_t* scales);
  void (*attend)(const LatentTile& tile);
  void (*attend_expanded)(const ExpandedTile& tile);
  const UnpackTransposed* unpack;  // [kFormats]; null for a format without a packed layout
};

extern const LatentKernels latent_kernels_generic;
#ifdef KTC_X86
extern const LatentKernels latent_kernels_avx2;
extern const LatentKernels latent_kernels_avx512;
#endif

}  // namespace ktc::kernels
