// The kernels behind kernels::linear and kernels::experts, one table an instruction set.
#pragma once

#include <cstdint>

#include "kernels/packed/format.hpp"

namespace ktc::kernels {

// y[tokens, rows] = x[tokens, columns] * weight^T + bias, for the part that a call of a kernel names.
struct LinearCall {
  const uint8_t* weight;  // packed
  int64_t rows, columns, band_stride;
  const uint8_t* x;      // activations: blocks or groups, or floats for float weights
  int64_t groups;        // bytes between the groups of a token, which lie kGroupBytes apart; 0 for no groups
  int64_t x_stride;      // otherwise, bytes between tokens
  const int32_t* order;  // which of them each token reads; null for the token's own, as with groups
  const float* bias;     // [rows] or null
  float* y;              // of row 0 and token 0
  int64_t y_stride;      // floats between tokens
  const uint8_t* after;  // weights that will be read next, to be prefetched; null for those behind
  const uint8_t* soon;   // groups of activations that will be, and how many bytes of them
  int64_t soon_bytes;
};

// What a panel kernel unpacks at once: 32 rows x 512 columns of codes and scales stay in a core's L1.
inline constexpr int kPanelBands = 2;
inline constexpr int kPanelTiles = 16;
// Bytes of a panel: for each tile its codes, and scale and minimum of each half tile.
inline constexpr int64_t kPanelBytes = kPanelBands * kPanelTiles * (512 + 2 * 2 * 64);
// Bytes of activations that should go through all of a weight's rows before the next ones: they stay in L2.
inline constexpr int64_t kRunBytes = 512 << 10;

// From so many tokens on, activations are quantised in groups.
inline constexpr int64_t kGroupTokens = 8;

struct IntegerKernels {
  // Writes the record of one token.
  void (*quantize)(const float* x, int64_t columns, uint8_t* record);
  // Bands [begin, end) for tokens [first, last): decodes the weight for every group of a few of them.
  void (*direct[kFormats])(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last);
  // Bands [begin, end) for tokens [first, last); `panel` is kPanelBytes of scratch, 64-byte aligned.
  void (*panel[kFormats])(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last,
                          uint8_t* panel);
  // Up to this many tokens the direct kernels are faster.
  int direct_tokens;
  // The same with activations in groups, where a level has that, else null.
  void (*quantize_groups)(const float* x, int64_t columns, uint8_t* groups, int64_t stride) = nullptr;
  void (*group[kFormats])(const LinearCall& call, int64_t begin, int64_t end, int64_t first,
                          int64_t last) = {};

  // Whether so many tokens take activations in groups for weights of a format.
  bool groups(Format format, int64_t tokens) const {
    return group[static_cast<int>(format)] && tokens >= kGroupTokens;
  }

  // The kernel for the call's activations.
  void multiply(Format format, const LinearCall& call, int64_t begin, int64_t end, int64_t first,
                int64_t last, uint8_t* scratch) const {
    const int i = static_cast<int>(format);
    if (call.groups) {
      group[i](call, begin, end, first, last);
    } else if (last - first <= direct_tokens) {
      direct[i](call, begin, end, first, last);
    } else {
      panel[i](call, begin, end, first, last, scratch);
    }
  }
};

// Activations as tiles take them: tokens in groups of up to 16, 32 columns of a group a tile of 1 KiB, a
// token 64 bytes of it in bf16. The tiles of a group follow each other; another one keeps groups from falling
// into the same sets of the caches.
inline constexpr int kTileRows = 16;
inline constexpr int64_t kTileBytes = 1024;
static constexpr int64_t tile_group_bytes(int64_t columns) {
  return (columns / 32 + 1) * kTileBytes;
}
// How many groups `tokens` tokens make, and how many tokens are in each but the last: about the same number,
// since a tile takes as long as its rows are many.
static constexpr int64_t tile_groups(int64_t tokens) {
  return (tokens + kTileRows - 1) / kTileRows;
}
static constexpr int64_t tile_group_tokens(int64_t tokens) {
  return (tokens + tile_groups(tokens) - 1) / tile_groups(tokens);
}

// Columns whose products are summed at once: their weights, 32 rows of bf16, stay in L1.
inline constexpr int kTileDepth = 8;  // tiles
inline constexpr int64_t kTileWeightBytes = 2 * kTileDepth * kTileBytes;

// The product of some bands of a weight and some groups of tokens.
struct TileCall {
  const uint8_t* weight;  // of the first band
  int64_t band_stride, bands, columns;
  const uint8_t* x;  // of the first group
  int64_t groups;
  int tokens;            // in each group; of the last one, fewer are of use
  uint8_t* panel;        // kTileWeightBytes of scratch, 64-byte aligned
  float* sums;           // [bands / 2, groups / 2 (both rounded up), 2 groups, 2 bands, 16 tokens, 16 rows]
  const uint8_t* after;  // bands that will be read next, to be prefetched, or null
};
inline constexpr int64_t kTileSums = 1024;  // of two bands and two groups

// Many tokens on tiles of bf16, where a level has them: weights and activations are rounded to bf16, their
// products are summed as floats.
struct TileKernels {
  void (*product[kFormats])(const TileCall& call);
  // Writes one token to its place in the tiles of its group.
  void (*place)(const float* x, int64_t columns, uint8_t* tiles);
  // y[rows] = bias (or null) + the sums of one token, of which `sums` has the first row; those of
  // neighbouring panels of 32 rows are `stride` floats apart.
  void (*store)(const float* sums, int64_t stride, int64_t rows, const float* bias, float* y);
  // From so many tokens on they are faster than integers.
  int64_t least_tokens;
};

struct FloatKernels {
  // Bands [begin, end) for tokens [first, last).
  void (*multiply[kFormats])(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last);
};

extern const IntegerKernels integer_kernels_generic;
extern const FloatKernels float_kernels_generic;
#ifdef KTC_X86
extern const IntegerKernels integer_kernels_avx2;
extern const IntegerKernels integer_kernels_avx512vnni;
extern const FloatKernels float_kernels_avx2;
extern const FloatKernels float_kernels_avx512;
#endif
#ifdef KTC_AMX
extern const TileKernels tile_kernels_amx;
#endif

// How many of `tokens` tokens, whose activations take `record` bytes each, go through a weight at once.
inline int64_t run_tokens(int64_t tokens, int64_t record, int64_t run_bytes = kRunBytes) {
  const int64_t run = run_bytes / record / 32 * 32;
  return run >= tokens ? tokens : run < 32 ? 32 : run;
}

// The tables of the level in force.
const IntegerKernels& integer_kernels();
const FloatKernels& float_kernels();
// The level's tiles where they are the faster way for so many tokens (of a weight), else null.
const TileKernels* tile_kernels(int64_t tokens);

}  // namespace ktc::kernels
