// Multi-head latent attention (DeepSeek-V2, 2024) over a paged cache of latents, and the expansion without
// it.
#pragma once

#include <cstdint>

#include "formats/format.hpp"
#include "kernels/attention/attention.hpp"

namespace ktc::kernels {

// A weight [heads, rows, columns], each head packed on its own (kernels/packed), `head_bytes` apart.
struct HeadWeights {
  Format format;
  const uint8_t* data;  // 64-byte aligned
};

// Bytes from one head's packed weight to the next: a multiple of 64. Throws std::invalid_argument for a shape
// without a packed layout.
int64_t head_bytes(Format format, int64_t rows, int64_t columns);

// How a sequence's new tokens meet its cache. `absorbed`: queries go to the space of latents and results come
// back, two products a token that read both weights, then attention with one key head of latents. `expanded`:
// keys and values of each head are made from the latents, tile by tile; worth it when many tokens share them.
enum class LatentForm : int { automatic, absorbed, expanded };

// The meaning is that of the dialect's kt.mla_attention.
struct LatentAttention {
  HeadRows q_nope, q_rope;     // [heads, tokens, nope], [heads, tokens, rope]
  const float* latent;         // [tokens, depth]
  int64_t latent_token;        // floats between tokens
  const float* k_rope;         // [tokens, rope]
  int64_t k_rope_token;        // floats between tokens
  HeadWeights w_key, w_value;  // [heads, depth, nope], [heads, value_depth, depth]
  Cache latents, rotated;      // [blocks, 1, block_size, depth] and [..., rope]
  int64_t heads, tokens;
  int64_t nope, rope, depth, value_depth;  // nope, depth: multiples of 32; rope, value_depth: of 16
  int64_t blocks, block_size;
  const int32_t* seq_starts;    // [sequences + 1]
  const int32_t* context_lens;  // [sequences]
  const int32_t* block_tables;  // [sequences, table_columns]
  int64_t sequences, table_columns;
  const int64_t* slots;  // [tokens]
  float scale;
  LatentForm form;
  float* out;  // [tokens, heads, value_depth]
};

// Throws std::invalid_argument, naming the operand, when the numbers do not fit each other or the cache.
void check_latent_attention(const LatentAttention& a);

// Writes the cache and `out`; call check_latent_attention before. Products with quantised weights take
// activations in int8 where they are absorbed (as kernels::linear does) and the weights' exact values where
// they are expanded. The result does not depend on the number of threads; a sequence's does not depend on
// other sequences, but for the rounding of products with float weights.
void latent_attention(const LatentAttention& a);

// Most bytes of scratch that a call takes, of all threads together.
int64_t latent_workspace(int64_t heads, int64_t nope, int64_t rope, int64_t depth, int64_t value_depth);

// kt.mla_expand: q and k [heads, tokens, nope + rope] and v [heads, tokens, value_depth], contiguous, from
// kv[tokens][heads][nope + value_depth] and k_rope[tokens][rope].
struct LatentExpansion {
  HeadRows q_nope, q_rope;
  const float* kv;
  int64_t kv_token;  // floats between tokens
  const float* k_rope;
  int64_t k_rope_token;
  int64_t heads, tokens, nope, rope, value_depth;
  float *q, *k, *v;
};

void latent_expand(const LatentExpansion& e);

}  // namespace ktc::kernels
