// Integer linear kernels for many tokens on AMX: a panel's lines are the tiles of weights as they are, so
// that 32 rows x 512 columns meet 32 tokens at a time, in units of the columns that share a scale (32 or 16).
//
// Tiles hold integers and every unit has scales of its own, so its products go through L1 to be scaled and
// added as floats, in the order in which the other kernels add. That takes longer than the products
// themselves: while tiles work on the next two units, the vectors scale the last two, with sums of 8 tokens
// in registers.
#pragma once

#include "kernels/linear/panel.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr int kTileTokens = 16, kGroupTokens = 2 * kTileTokens, kScaledTokens = 8, kUnits = 2;

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

// Tiles 0 to 3 are products [token tile][band], 4 and 5 activations, 6 and 7 weights of `columns` columns.
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

// Products of a unit: [token][row], by token tile and band.
struct Products {
  int32_t of[2][kPanelBands][kTileTokens][16];
};

// What a group of tokens keeps in L1 while it meets a panel. Where a token's products and sums lie depends,
// modulo 4 KiB, on its tile: what is scaled never looks like what the tiles are just storing.
struct alignas(4096) GroupMemory {
  float sums[kGroupTokens][kPanelBands][16];
  Products products[2][kUnits];
  int8_t codes[2][kGroupTokens][32];
};

// A panel and the tokens it meets.
struct Group {
  const uint8_t* panel;
  int64_t step, tiles;
  const ActivationBlock* const* tokens;
  int count;
  int64_t stride;  // bytes between the records of neighbouring tokens; 0 where they lie anywhere
  GroupMemory& memory;
};

// The products of token tile kTile in one unit: starts them, and stores them once they are there.
template <class Shape, int kTile, bool kTwoBands>
inline void multiply_unit(const Group& g, int64_t unit, Products& out) {
  constexpr int lines = 8 / Shape::halves, columns = 32 / Shape::halves, first = kTile * kTileTokens;
  const int64_t t = unit / Shape::halves, half = unit % Shape::halves;
  const uint8_t* weights = g.panel + t * g.step + 64 * half * lines;
  const int8_t* codes = g.tokens[first][t].codes;
  int64_t stride = g.stride;
  if (stride == 0) {
    int8_t (&gathered)[kGroupTokens][32] = g.memory.codes[t % 2];
    if (half == 0) {
      const int last = smaller(g.count, first + kTileTokens);
      for (int m = first; m < last; ++m) {
        const __m256i* from = reinterpret_cast<const __m256i*>(g.tokens[m][t].codes);
        _mm256_store_si256(reinterpret_cast<__m256i*>(gathered[m]), _mm256_load_si256(from));
      }
    }
    codes = gathered[first];
    stride = 32;
  }
  codes += half * columns;
  if constexpr (kTile == 0) {
    _tile_loadd(6, weights, 64);
    if constexpr (kTwoBands) _tile_loadd(7, weights + Shape::bytes, 64);
    _tile_loadd(4, codes, stride);
    _tile_zero(0);
    _tile_dpbsud(0, 4, 6);
    if constexpr (kTwoBands) {
      _tile_zero(1);
      _tile_dpbsud(1, 4, 7);
    }
    _tile_stored(0, out.of[0][0], 64);
    if constexpr (kTwoBands) _tile_stored(1, out.of[0][1], 64);
  } else {
    _tile_loadd(5, codes, stride);
    _tile_zero(2);
    _tile_dpbsud(2, 5, 6);
    if constexpr (kTwoBands) {
      _tile_zero(3);
      _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(2, out.of[1][0], 64);
    if constexpr (kTwoBands) _tile_stored(3, out.of[1][1], 64);
  }
}

// Adds the products of units [unit, unit + units) to the sums of kTokens tokens from `first` on.
template <class Shape, int kBands, int kTokens>
inline void scale_tokens(const Group& g, int64_t unit, int units, const Products* products, int first) {
  vf sum[kTokens][kBands];
#pragma GCC unroll 8
  for (int m = 0; m < kTokens; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < kBands; ++v) sum[m][v] = vload(g.memory.sums[first + m][v]);
  }
  for (int u = 0; u < units; ++u, ++unit) {
    const int64_t t = unit / Shape::halves;
    const int half = static_cast<int>(unit % Shape::halves);
    vf scale[kBands], least[kBands];
#pragma GCC unroll 2
    for (int v = 0; v < kBands; ++v) {
      const float* place =
          reinterpret_cast<const float*>(g.panel + t * g.step + v * Shape::bytes) + 16 * half;
      scale[v] = vload(place + Shape::scales / 4);
      if constexpr (Shape::min) least[v] = vload(place + Shape::minima / 4);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      const ActivationBlock& x = g.tokens[first + m][t];
      const vf x_scale = vset(x.scale);
#pragma GCC unroll 2
      for (int v = 0; v < kBands; ++v) {
        vi total = _mm512_load_si512(products[u].of[first / kTileTokens][v][first % kTileTokens + m]);
        if constexpr (Shape::shift >= 0)
          total = vaddi(total, vshl<Shape::shift>(vseti(minus_of<Shape::halves>(x, half))));
        sum[m][v] = vfma(vtofloat(total), scale[v] * x_scale, sum[m][v]);
        if constexpr (Shape::min) sum[m][v] = vfma(least[v], vset(sum_of<Shape::halves>(x, half)), sum[m][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kTokens; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < kBands; ++v) vstore(g.memory.sums[first + m][v], sum[m][v]);
  }
}

// The same for tokens [first, first + kScaledTokens), as far as there are so many.
template <class Shape, int kBands>
inline void scale_some(const Group& g, int64_t unit, int units, const Products* products, int first) {
  if (first + kScaledTokens <= g.count)
    return scale_tokens<Shape, kBands, kScaledTokens>(g, unit, units, products, first);
  for (int m = first; m < g.count; ++m) scale_tokens<Shape, kBands, 1>(g, unit, units, products, m);
}

template <class Shape, bool kTwoTiles, bool kTwoBands>
void multiply_group(const Group& g) {
  constexpr int bands = kTwoBands ? 2 : 1;
  const int64_t units = g.tiles * Shape::halves;
  const auto multiply = [&](auto tile, int64_t unit, int buffer) {
    if (unit < units)
      multiply_unit<Shape, tile(), kTwoBands>(g, unit, g.memory.products[buffer][unit % kUnits]);
  };
  constexpr auto low = [] { return 0; };
  constexpr auto high = [] { return 1; };
  for (int64_t unit = 0; unit < kUnits; ++unit) {
    multiply(low, unit, 0);
    if constexpr (kTwoTiles) multiply(high, unit, 0);
  }
  int buffer = 0;
  for (int64_t unit = 0; unit < units; unit += kUnits, buffer ^= 1) {
    const int here = static_cast<int>(units - unit < kUnits ? units - unit : kUnits);
    const Products* products = g.memory.products[buffer];
    const auto scale = [&](int first) { scale_some<Shape, bands>(g, unit, here, products, first); };
    for (int u = 0; u < kUnits; ++u) {
      multiply(low, unit + kUnits + u, buffer ^ 1);
      if constexpr (kTwoTiles) {
        scale(kTileTokens + u * kScaledTokens);
        multiply(high, unit + kUnits + u, buffer ^ 1);
      }
      scale(u * kScaledTokens);
    }
  }
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
        for (int m = 0; m < count; ++m) {
          x[m] = record(call, token + m) + start;
          const float* from = s.add ? s.y + m * s.y_stride : s.bias;
          for (int v = 0; v < bands; ++v)
            vstore(memory.sums[m][v], from ? load_rows(from, s.row + v * kWidth, s.rows) : vzero());
        }
        const Group group{scratch, step, tiles, x, count, call.order ? 0 : call.x_stride, memory};
        if (count > kTileTokens) {
          bands == 2 ? multiply_group<Shape, true, true>(group) : multiply_group<Shape, true, false>(group);
        } else {
          bands == 2 ? multiply_group<Shape, false, true>(group) : multiply_group<Shape, false, false>(group);
        }
        for (int m = 0; m < count; ++m) {
          for (int v = 0; v < bands; ++v)
            store_rows(s.y + m * s.y_stride, s.row + v * kWidth, s.rows, vload(memory.sums[m][v]));
        }
      });
  _tile_release();
}

}  // namespace
}  // namespace ktc::kernels
