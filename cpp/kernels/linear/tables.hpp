// The kernels behind kernels::linear and kernels::experts, one table an instruction set.
#pragma once

#include <cstdint>

#include "kernels/packed/format.hpp"

namespace ktc::kernels {

// y[tokens, rows] = x[tokens, columns] * weight^T + bias, for the part that a call of a kernel names.
struct LinearCall {
  const uint8_t* weight;  // packed
  int64_t rows, columns, band_stride;
  const uint8_t* x;      // activation records, or floats for float weights
  int64_t x_stride;      // bytes between tokens
  const int32_t* order;  // which record each token reads; null for the token's own
  const float* bias;     // [rows] or null
  float* y;              // of row 0 and token 0
  int64_t y_stride;      // floats between tokens
  const uint8_t* after;  // weights that will be read next, to be prefetched; null for those behind
};

// What a panel kernel unpacks at once: 32 rows x 512 columns of codes and scales stay in a core's L1.
inline constexpr int kPanelBands = 2;
inline constexpr int kPanelTiles = 16;
// Bytes of a panel: for each tile its codes, and scale and minimum of each half tile.
inline constexpr int64_t kIntegerPanelBytes = kPanelBands * kPanelTiles * (512 + 2 * 2 * 64);
// The same of bf16 weights, for tiles; and the sums of groups of tokens, as many as go through a panel at
// once.
inline constexpr int64_t kTilePanelBytes = kPanelBands * kPanelTiles * 1024;
inline constexpr int kTileGroup = 32, kTileGroups = 8;
inline constexpr int64_t kTileSumBytes = kTileGroup * kPanelBands * 64;
inline constexpr int64_t kPanelBytes = kTilePanelBytes + kTileGroups * kTileSumBytes;
static_assert(kPanelBytes >= kIntegerPanelBytes);
// Bytes of activations that should go through all of a weight's rows before the next ones: they stay in L2.
inline constexpr int64_t kRunBytes = 512 << 10;
inline constexpr int64_t kTileRunBytes = 1 << 20;  // tiles are behind caches twice the size

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

  // The one or the other.
  void multiply(Format format, const LinearCall& call, int64_t begin, int64_t end, int64_t first,
                int64_t last, uint8_t* scratch) const {
    const int i = static_cast<int>(format);
    if (last - first <= direct_tokens) {
      direct[i](call, begin, end, first, last);
    } else {
      panel[i](call, begin, end, first, last, scratch);
    }
  }
};

// Many tokens on tiles of bf16, where a level has them: weights and activations are rounded to bf16, their
// products are summed as floats.
struct TileKernels {
  // Writes the record of one token: its values in bf16, as long as an integer record.
  void (*round)(const float* x, int64_t columns, uint8_t* record);
  // As IntegerKernels::panel, on such records.
  void (*panel[kFormats])(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last,
                          uint8_t* panel);
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
