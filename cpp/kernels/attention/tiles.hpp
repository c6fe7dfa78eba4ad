// Attention of many query rows on AMX tiles of bf16, for caches that round what they hold anyway.
//
// Queries and keys are sums of two bf16, multiplied in three products (keys of a bf16 cache are one, in two),
// which keeps 16 bits of them: one bf16 each would give a score an NMSE of 6e-6, and weights that much more
// as scores are large. Weights and values are one bf16: NMSE up to 6e-6 of the result.
//
// Every position is placed in tiles once for all queries of its key head: keys in the order in which 16 of
// them meet a tile of queries, values in pairs of positions. Then runs of query rows, all heads of a group,
// go through them.
#pragma once

#include "kernels/attention/attention.hpp"

namespace ktc::kernels {

// Positions whose tiles lie together, and query rows that meet them at a time.
inline constexpr int kTiledPositions = 32, kTiledRows = 32;
// Positions between two additions to the sums; their scores and weights stay in L1.
inline constexpr int kTiledChunk = 128;
// Tiles of 1 KiB: 16 rows x 32 elements of bf16.
inline constexpr int64_t kAttentionTileBytes = 1024;

// Of kTiledPositions positions; `split`: of two bf16 an element.
static constexpr int64_t tiled_key_bytes(int64_t depth, bool split) {
  return (depth + 31) / 32 * 2 * kAttentionTileBytes * (split ? 2 : 1);
}
static constexpr int64_t tiled_value_bytes(int64_t value_depth) {
  return (value_depth + 31) / 32 * 2 * kAttentionTileBytes;
}

// Positions [start, start + count) of one head as tiles; those up to kTiledPositions are zeros.
struct TiledPlace {
  CachedRows rows;
  Pages pages;
  int64_t start;
  int count;
  bool split;      // of keys
  float* scratch;  // kTiledPositions * depth
  uint8_t* out;
};

// A tile of queries of one key head; `begin` is a multiple of kTiledPositions, and there is an `out`.
struct TiledQueries {
  AttentionTile tile;
  bool split;
  const uint8_t *keys, *values;  // tiles from `begin` on
};

// Floats of scratch for `rows` query rows: their tiles, highest scores, totals and sums; of kTiledRows of
// them scores and weights, each row a cache line longer than a chunk, and one row of sums.
static constexpr int64_t tiled_scratch(int64_t rows, int64_t depth, int64_t value_depth) {
  const int64_t padded = (rows + kTiledRows - 1) / kTiledRows * kTiledRows;
  const int64_t width = (value_depth + 31) / 32 * 32;
  return padded * ((depth + 31) / 32 * 32 + 1 + 16 + width) + width +
         kTiledRows * (kTiledChunk + 16 + kTiledChunk / 2 + 16);
}

struct TiledAttention {
  void (*place_keys)(const TiledPlace& place);
  void (*place_values)(const TiledPlace& place);
  void (*attend)(const TiledQueries& queries);
};

#ifdef KTC_AMX
extern const TiledAttention tiled_attention_amx;
#endif

// Whether the level in force has tiles for a sequence of the step: by its own new tokens and the caches
// alone.
bool attention_on_tiles(const Attention& a, int64_t sequence);

// The rows of `out` of all those sequences, whose new keys and values are in the caches.
void attention_tiled(const Attention& a);

}  // namespace ktc::kernels
