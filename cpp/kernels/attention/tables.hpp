// The kernels behind kernels::attention, one table an instruction set.
#pragma once

#include <cstdint>

namespace ktc::kernels {

enum class CacheType : int { f32, f16, bf16 };

// Cached positions that one step of the loop takes.
inline constexpr int kAttentionTile = 64;
// Most query rows (heads of a group times tokens) of one tile of work.
inline constexpr int kAttentionRows = 96;

// A cache at one head: `block` bytes from one block of it to the next, rows of `depth` elements.
struct CachedRows {
  const uint8_t* data;
  int64_t block;
  CacheType type;
  int depth;  // a multiple of 16
};

// Where the positions of one sequence lie, and how many of them there are to read.
struct Pages {
  const int32_t* table;
  int64_t block_size, end;
};

// Rows of queries that share a key head, against cached positions [begin, end) of one sequence. Row r is head
// r / tokens of the group and token r % tokens.
struct AttentionTile {
  const float* q;           // head 0, token 0 of the tile
  int64_t q_head, q_token;  // strides in floats
  int heads, tokens;
  int depth, value_depth;          // multiples of 16
  const uint8_t *keys, *values;    // the caches at this key head
  int64_t key_block, value_block;  // bytes between blocks
  CacheType key_type, value_type;
  int64_t block_size;
  const int32_t* table;  // the sequence's blocks
  int64_t begin, end;
  int64_t position;  // of token 0
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
  // queries, scores, sums; keys transposed and values of one tile; highest, total.
  return rows * (depth + kAttentionTile + value_depth + 2) + kAttentionTile * (depth + value_depth) + 64;
}

struct AttentionKernels {
  // Converts n floats.
  void (*write_cache)(const float* from, int64_t n, CacheType type, uint8_t* to);
  void (*attend)(const AttentionTile& tile);
};

extern const AttentionKernels attention_kernels_generic;
#ifdef KTC_X86
extern const AttentionKernels attention_kernels_avx2;
extern const AttentionKernels attention_kernels_avx512;
#endif

}  // namespace ktc::kernels
