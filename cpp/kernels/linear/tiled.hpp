// Linear layers of many tokens on tiles (TileKernels): activations are placed in tiles once, then blocks of
// rows meet runs of tokens.
#pragma once

#include <cstdint>

#include "kernels/experts/tables.hpp"
#include "kernels/linear/tables.hpp"

namespace ktc::kernels {

// Bytes of the activations of so many tokens in tiles.
static constexpr int64_t tiled_bytes(int64_t tokens, int64_t columns) {
  return tile_groups(tokens) * tile_group_bytes(columns);
}

// Rounds x[tokens, columns] to bf16 into `groups`, tiled_bytes of it at a multiple of 64; `x_stride` floats
// lie between tokens.
void place_activations(const TileKernels& tiles, const float* x, int64_t x_stride, int64_t tokens,
                       int64_t columns, uint8_t* groups);

// As `linear` and `linear_gated`, on and to such activations.
void linear_tiled(const TileKernels& tiles, const PackedWeight& weight, const uint8_t* groups, int64_t tokens,
                  const float* bias, float* y, int64_t y_stride);
void linear_gated_tiled(const TileKernels& tiles, const PackedWeight& weight, const uint8_t* groups,
                        int64_t tokens, const float* bias, Gate gate, uint8_t* out);

}  // namespace ktc::kernels
