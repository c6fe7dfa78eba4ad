// What the sources of latent attention share.
#pragma once

#include <cstdint>

#include "kernels/latent/latent.hpp"
#include "kernels/latent/tables.hpp"

namespace ktc::kernels {

// The table of the level in force.
const LatentKernels& latent_kernels();

CachedRows latent_rows(const LatentAttention& a);
CachedRows rotated_rows(const LatentAttention& a);
// Where a sequence's positions lie, up to `end`.
Pages latent_pages(const LatentAttention& a, int64_t sequence, int64_t end);

// y[tokens][rows] of one head = x[tokens][columns] times its weight [rows, columns], for the bands [begin,
// end) of 16 rows; y points to row 0. `records` has room for product_bytes.
void head_product(const HeadWeights& weight, int64_t head, int64_t rows, int64_t columns, const float* x,
                  int64_t x_token, int64_t tokens, float* y, int64_t y_token, int64_t begin, int64_t end,
                  uint8_t* records);
int64_t product_bytes(int64_t tokens, int64_t columns);

// Absorbed: the tokens [first, last) of sequence `sequence` and of those after it that the list names.
struct LatentSpan {
  int64_t sequence, first, last;
};
void absorbed_attention(const LatentAttention& a, const LatentSpan* spans, int64_t count);
int64_t absorbed_workspace(int64_t heads, int64_t nope, int64_t rope, int64_t depth, int64_t value_depth,
                           int64_t threads);

// Expanded: all new tokens of one sequence.
void expanded_attention(const LatentAttention& a, int64_t sequence);
int64_t expanded_workspace(int64_t nope, int64_t rope, int64_t depth, int64_t value_depth, int64_t threads);

}  // namespace ktc::kernels
