// Causal attention of a ragged batch over a paged key/value cache that it also writes.
#pragma once

#include <cstdint>

#include "kernels/attention/tables.hpp"

namespace ktc::kernels {

// A cache [blocks, kv_heads, block_size, depth], contiguous.
struct Cache {
  uint8_t* data;
  CacheType type;
};

// A tensor [heads, tokens, depth] whose last dimension is contiguous; strides in floats.
struct HeadRows {
  const float* data;
  int64_t head, token;
};

// Rotary embedding of queries and keys on their way into attention: tables [tokens, width], see vector.hpp.
struct Rotation {
  const float *cos, *sin;
  int64_t width;  // even, at most the depth
  bool interleaved;
};

// The meaning is that of the dialect's kt.attention.
struct Attention {
  HeadRows q, k, v;
  Cache keys, values;
  int64_t heads, kv_heads, tokens, depth, value_depth;  // depths: multiples of 16
  int64_t blocks, block_size;
  const int32_t* seq_starts;    // [sequences + 1]
  const int32_t* context_lens;  // [sequences]
  const int32_t* block_tables;  // [sequences, table_columns]
  int64_t sequences, table_columns;
  const int64_t* slots;  // [tokens]
  float scale, softcap;
  int64_t window;
  const float* sinks;  // [heads] or null
  float* out;          // [tokens, heads, value_depth]
  Rotation rotation;   // of q and k first; no tables: none
};

// The first position that the token at `position` attends to.
static constexpr int64_t oldest_seen(const Attention& a, int64_t position) {
  return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

// What one of the step's caches, with rows of `depth` elements, holds of a key head.
static constexpr CachedRows rows_of_head(const Attention& a, const Cache& cache, int64_t depth,
                                         int64_t kv_head) {
  const int64_t slab = slab_bytes(cache.type, a.block_size, depth);
  return {cache.data + kv_head * slab, a.kv_heads * slab, cache.type, static_cast<int>(depth)};
}

// Whether the level's kernels rotate this step's rows; else `rotation` has to be empty.
bool attention_rotates(const Attention& a);

// Throws std::invalid_argument, naming the operand, when the step's numbers do not fit each other or the
// cache.
void check_attention(const Attention& a);

// The part of it that is about one cache.
void check_cache(const char* op, CacheType type, int64_t depth);

// The part of it that is about sequences, blocks and slots; `op` begins the message.
void check_step(const char* op, const Attention& a);

// Writes the cache and `out`; call check_attention before. The result does not depend on the number of
// threads.
void attention(const Attention& a);

}  // namespace ktc::kernels
