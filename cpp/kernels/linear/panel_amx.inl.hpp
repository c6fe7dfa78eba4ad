// Integer linear kernels for many tokens on AMX: a panel's lines are the tiles of weights as they are, so
// that 32 rows x 512 columns meet 32 tokens at a time, one scale's columns (32 or 16) after the other.
//
// Tiles hold integers, and every block of columns has scales of its own: after each block the four tiles of
// sums go through L1 to be scaled and added as floats, in the order in which the other kernels add.
#pragma once

#include "kernels/linear/panel.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr int kTileTokens = 16, kGroupTokens = 2 * kTileTokens;

// As the processor reads it: palette 1, then bytes a row and rows of each of the 8 tiles.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int tile_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// Tiles 0 to 3 are sums [token tile][band], 4 and 5 activations, 6 and 7 weights of `columns` columns.
inline void configure_tiles(int tokens, int columns) {
  TileConfiguration tiles;
  const int low = smaller(tokens, kTileTokens);
  const int high = tokens > kTileTokens ? tokens - kTileTokens : 1;
  tiles.set(0, low, 64);
  tiles.set(1, low, 64);
  tiles.set(2, high, 64);
  tiles.set(3, high, 64);
  tiles.set(4, low, columns);
  tiles.set(5, high, columns);
  tiles.set(6, columns / 4, 64);
  tiles.set(7, columns / 4, 64);
  _tile_loadconfig(&tiles);
}

// What a group of tokens keeps in L1 while it meets a panel.
struct alignas(64) GroupMemory {
  float sums[kGroupTokens][kPanelBands][16];
  int32_t products[2][kPanelBands][kTileTokens][16];
  int8_t codes[kGroupTokens][32];
};

// products[token tile][band] = codes of one half block times the panel's lines.
template <bool kTwoTiles, bool kTwoBands>
inline void multiply_tiles(const uint8_t* lines, int64_t between, const int8_t* codes, GroupMemory& memory) {
  _tile_zero(0);
  _tile_loadd(4, codes, 32);
  _tile_loadd(6, lines, 64);
  _tile_dpbsud(0, 4, 6);
  if constexpr (kTwoBands) {
    _tile_zero(1);
    _tile_loadd(7, lines + between, 64);
    _tile_dpbsud(1, 4, 7);
  }
  if constexpr (kTwoTiles) {
    _tile_zero(2);
    _tile_loadd(5, codes + kTileTokens * 32, 32);
    _tile_dpbsud(2, 5, 6);
    if constexpr (kTwoBands) {
      _tile_zero(3);
      _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, memory.products[0][0], 64);
  if constexpr (kTwoBands) _tile_stored(1, memory.products[0][1], 64);
  if constexpr (kTwoTiles) {
    _tile_stored(2, memory.products[1][0], 64);
    if constexpr (kTwoBands) _tile_stored(3, memory.products[1][1], 64);
  }
}

template <class Shape, bool kTwoTiles, bool kTwoBands>
void group_tiles(const uint8_t* panel, int64_t step, int64_t tiles, const ActivationBlock* const* tokens,
                 int count, const Sums& s, GroupMemory& memory) {
  constexpr int bands = kTwoBands ? 2 : 1, columns = 32 / Shape::halves, lines = 8 / Shape::halves;
  for (int m = 0; m < count; ++m) {
    const float* from = s.add ? s.y + m * s.y_stride : s.bias;
    for (int v = 0; v < bands; ++v)
      vstore(memory.sums[m][v], from ? load_rows(from, s.row + v * kWidth, s.rows) : vzero());
  }
  for (int64_t t = 0; t < tiles; ++t, panel += step) {
    for (int m = 0; m < count; ++m) {
      const __m256i* codes = reinterpret_cast<const __m256i*>(tokens[m][t].codes);
      _mm256_store_si256(reinterpret_cast<__m256i*>(memory.codes[m]), _mm256_load_si256(codes));
    }
    for (int half = 0; half < Shape::halves; ++half) {
      multiply_tiles<kTwoTiles, kTwoBands>(panel + 64 * half * lines, Shape::bytes,
                                           memory.codes[0] + half * columns, memory);
      vf scale[bands], least[bands];
      for (int v = 0; v < bands; ++v) {
        const float* place = reinterpret_cast<const float*>(panel + v * Shape::bytes) + 16 * half;
        scale[v] = vload(place + Shape::scales / 4);
        if constexpr (Shape::min) least[v] = vload(place + Shape::minima / 4);
      }
      for (int m = 0; m < count; ++m) {
        const ActivationBlock& x = tokens[m][t];
        const vf x_scale = vset(x.scale);
        for (int v = 0; v < bands; ++v) {
          const int32_t* product = memory.products[m / kTileTokens][v][m % kTileTokens];
          vi total = _mm512_load_si512(product);
          if constexpr (Shape::shift >= 0)
            total = vaddi(total, vshl<Shape::shift>(vseti(minus_of<Shape::halves>(x, half))));
          vf sum = vfma(vtofloat(total), scale[v] * x_scale, vload(memory.sums[m][v]));
          if constexpr (Shape::min) sum = vfma(least[v], vset(sum_of<Shape::halves>(x, half)), sum);
          vstore(memory.sums[m][v], sum);
        }
      }
    }
  }
  for (int m = 0; m < count; ++m) {
    for (int v = 0; v < bands; ++v)
      store_rows(s.y + m * s.y_stride, s.row + v * kWidth, s.rows, vload(memory.sums[m][v]));
  }
}

template <class Shape>
inline void panel_tiles(int count, int bands, const uint8_t* panel, int64_t step, int64_t tiles,
                        const ActivationBlock* const* tokens, const Sums& s, GroupMemory& memory) {
  const bool two = count > kTileTokens;
  if (bands == 2) {
    return two ? group_tiles<Shape, true, true>(panel, step, tiles, tokens, count, s, memory)
               : group_tiles<Shape, false, true>(panel, step, tiles, tokens, count, s, memory);
  }
  return two ? group_tiles<Shape, true, false>(panel, step, tiles, tokens, count, s, memory)
             : group_tiles<Shape, false, false>(panel, step, tiles, tokens, count, s, memory);
}

template <Format kFormat>
void panel_amx(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last,
               uint8_t* scratch) {
  using Shape = PanelOf<kFormat>;
  GroupMemory memory;
  int configured = 0;
  each_panel<kFormat>(
      call, begin, end, first, last, kGroupTokens, scratch,
      [&](int bands, int64_t step, int64_t tiles, int64_t start, int64_t token, int count, Sums& s) {
        if (count != configured) {
          configure_tiles(count, 32 / Shape::halves);
          configured = count;
        }
        const ActivationBlock* x[kGroupTokens];
        for (int m = 0; m < count; ++m) x[m] = record(call, token + m) + start;
        panel_tiles<Shape>(count, bands, scratch, step, tiles, x, s, memory);
      });
  _tile_release();
}

}  // namespace
}  // namespace ktc::kernels
