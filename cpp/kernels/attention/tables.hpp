// The kernels behind kernels::attention, one table an instruction set.
#pragma once

#include <cstdint>

namespace ktc::kernels {

// q8_0: int8 codes with a float16 scale for 32 of them. A block of the cache holds, for one head, the codes
// of all its positions and then their scales.
enum class CacheType : int { f32, f16, bf16, q8_0 };
inline constexpr int kCacheTypes = 4;
// Elements that share a scale.
inline constexpr int kCacheGroup = 32;

// Cached positions that one step of the loop takes.
inline constexpr int kAttentionTile = 64;
// Most query rows (heads of a group times tokens) of one tile of work.
inline constexpr int kAttentionRows = 96;
// Up to so many rows, cached rows are used where they lie; more are worth a copy as floats.
inline constexpr int kStreamedRows = 16;

// Bytes of `count` elements, without their scales.
static constexpr int64_t element_bytes(CacheType type, int64_t count) {
  return type == CacheType::f32 ? 4 * count : type == CacheType::q8_0 ? count : 2 * count;
}
// Bytes of one head of a block of `positions` rows of `depth` elements.
static constexpr int64_t slab_bytes(CacheType type, int64_t positions, int64_t depth) {
  const int64_t scales = type == CacheType::q8_0 ? positions * (depth / kCacheGroup) * 2 : 0;
  return element_bytes(type, positions * depth) + scales;
}

// A cache at one head: `block` bytes from one block of it to the next, rows of `depth` elements.
struct CachedRows {
  const uint8_t* data;
  int64_t block;
  CacheType type;
  int depth;  // a multiple of 16, with q8_0 of 32
};

// Where the positions of one sequence lie, and how many of them there are to read.
struct Pages {
  const int32_t* table;
  int64_t block_size, end;
};

// Rows of queries of one or more key heads, one after the other, against cached positions [begin, end) of one
// sequence. Row r is query head r / tokens and token r % tokens.
struct AttentionTile {
  const float* q;                  // head 0, token 0 of the tile
  int64_t q_head, q_token;         // strides in floats
  int heads, kv_heads, tokens;     // only `stream` takes several key heads
  int depth, value_depth;          // multiples of 16
  const uint8_t *keys, *values;    // the caches at the first key head
  int64_t key_block, value_block;  // bytes between blocks
  int64_t key_slab, value_slab;    // bytes between the heads of a block
  CacheType key_type, value_type;
  int64_t block_size;
  const int32_t* table;       // the sequence's blocks
  int64_t begin, end, limit;  // what comes after `end`, up to `limit`, will be wanted next
  float* rounded;             // tiles of the positions from `begin` on, see rounded.hpp; or null
  int64_t position;           // of token 0
  int64_t window;
  float scale, softcap;
  const float* sinks;  // of the group's heads, or null; only with `out`
  // Either the result, normalised: out[token * out_token + head * value_depth] ...
  float* out;
  int64_t out_token;
  // ... or, when `out` is null, a part of it: per row the highest score, the sum of weights, and value_depth
  // sums.
  float *highest, *total, *sums;
  float* scratch;  // attention_scratch floats, 64-byte aligned
};

static constexpr int64_t attention_scratch(int64_t rows, int64_t depth, int64_t value_depth) {
  // queries, scores, sums, highest, total; keys transposed and values of one tile, or the scales of both.
  return rows * (depth + kAttentionTile + value_depth + 2) + kAttentionTile * (depth + value_depth) + 64;
}

// Parts of one query row to add up, `stride` floats from one to the next: highest scores, sums of weights,
// sums of values.
struct AttentionParts {
  const float *highest, *total, *sums;
  int64_t parts, stride;
  const float* sink;  // or null
  int value_depth;    // a multiple of 16
  float* out;
};

struct AttentionKernels {
  // Converts n floats; scales of q8_0 go to `scales`.
  void (*write_cache)(const float* from, int64_t n, CacheType type, uint8_t* to, uint8_t* scales);
  // For many rows, and for up to kStreamedRows.
  void (*attend)(const AttentionTile& tile);
  void (*stream)(const AttentionTile& tile);
  void (*combine)(const AttentionParts& parts);
};

extern const AttentionKernels attention_kernels_generic;
#ifdef KTC_X86
extern const AttentionKernels attention_kernels_avx2;
extern const AttentionKernels attention_kernels_avx512;
#endif

}  // namespace ktc::kernels
