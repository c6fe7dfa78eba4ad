// Linear kernels for many tokens on AMX tiles of bf16: 32 rows x 512 columns are unpacked to bf16 in L1, then
// meet 32 tokens at a time; the products of a panel are summed within the tiles.
//
// Why not tiles of bytes: every 32 columns have scales of their own, so that each product of byte tiles had
// to go through L1 and be scaled by vectors. Measured on Sapphire Rapids, that took 200 ns for 32 x 32 x 32
// products, where AVX-512 VNNI takes 160 and bf16 tiles need no scaling at all. Rounding both sides to bf16
// costs an NMSE of about 3e-6 against float activations; rounding activations to bytes, as the other kernels
// do, costs 3e-5.
#pragma once

#include "isa/tiles.inl.hpp"
#include "kernels/linear/panel.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr int kTileTokens = 16, kGroupTokens = 2 * kTileTokens;

using isa::load_configuration;
using isa::TileConfiguration;

// Tiles 0 to 3 are sums [token tile][band], 4 and 5 activations, 6 and 7 weights.
inline void configure_tiles(int tokens) {
  TileConfiguration tiles;
  const int low = smaller(tokens, kTileTokens);
  const int high = tokens > kTileTokens ? tokens - kTileTokens : 1;
  tiles.set(0, low);
  tiles.set(1, low);
  tiles.set(2, high);
  tiles.set(3, high);
  tiles.set(4, low);
  tiles.set(5, high);
  tiles.set(6, 16);
  tiles.set(7, 16);
  load_configuration(tiles);
}

void round_record(const float* x, int64_t columns, uint8_t* record) {
  for (int64_t i = 0; i < columns; i += 32)
    _mm512_storeu_si512(record + 2 * i, (__m512i)_mm512_cvtne2ps_pbh(vload(x + i + 16), vload(x + i)));
}

// Weights are cut to bf16, not rounded: that takes half of the instructions. Cutting makes them smaller by
// 0.28 % on average, so the scales are that much larger; the NMSE that is left is 3.1e-6, where rounding has
// 2.8e-6. A weight that bf16 can hold stays as it is.
constexpr float kCut = 1.0028f;

// One line of codes, 16 rows x 4 columns, as two lines of pairs: a code in the upper bits of a mantissa is
// 1 + code / 256, which one multiply-add takes to the weight.
inline void unpack_line(vb line, vf scale, vf least, uint8_t* out) {
  const vi one = _mm512_set1_epi32(0x3f800000), place = _mm512_set1_epi32(0x007f8000);
  const vi high = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000));
  const auto weight = [&](vi bits) {
    const vf code = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, place, one, 0xea));  // (a & b) | c
    return _mm512_castps_si512(vfma(code, scale, least));
  };
  const auto pair = [&](vi even, vi odd) {  // a | (b & c)
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(even, 16), odd, high, 0xf8);
  };
  const vi k0 = weight(_mm512_slli_epi32(line, 15)), k1 = weight(_mm512_slli_epi32(line, 7));
  const vi k2 = weight(_mm512_srli_epi32(line, 1)), k3 = weight(_mm512_srli_epi32(line, 9));
  _mm512_store_si512(out, pair(k0, k1));
  _mm512_store_si512(out + 64, pair(k2, k3));
}

// Tiles [first, first + tiles) of a chunk of `all` tiles to bf16 tiles `step` bytes apart.
template <Format kFormat>
inline void unpack_chunk(const uint8_t* header, int all, int first, int tiles, uint8_t* out, int64_t step) {
  using T = Traits<kFormat>;
  constexpr int lines_of_half = 8 / T::halves;
  const uint8_t* tile = header + header_bytes(T::s.scales, all) + first * tile_bytes(T::s);
  for (int t = first; t < first + tiles; ++t, tile += tile_bytes(T::s), out += step) {
    vb lines[8];
    decode_tile<kFormat>(tile, 0, lines);
#pragma GCC unroll 2
    for (int half = 0; half < T::halves; ++half) {
      const vf scale = tile_scale<T::s.scales>(header, t, half, 0) * vset(256 * kCut);
      vf least = vzero() - scale;
      if constexpr (T::min) {
        least = vfma(tile_min<T::s.scales>(header, all, t, half, 0), vset(kCut), least);
      } else if constexpr (T::shift >= 0) {
        least = scale * vset(-1 - static_cast<float>(1 << T::shift) / 256);
      }
#pragma GCC unroll 8
      for (int j = half * lines_of_half; j < (half + 1) * lines_of_half; ++j)
        unpack_line(lines[j], scale, least, out + 128 * j);
    }
  }
}

// Tiles [0, tiles) from `header` on, the start of a chunk.
template <Format kFormat>
inline void unpack_tiles(const uint8_t* header, int64_t tiles, uint8_t* out, int64_t step) {
  using T = Traits<kFormat>;
  for (; tiles > 0; tiles -= kChunkTiles, out += kChunkTiles * step) {
    const int here = static_cast<int>(tiles < kChunkTiles ? tiles : kChunkTiles);
    unpack_chunk<kFormat>(header, here, 0, here, out, step);
    header += header_bytes(T::s.scales, here) + here * tile_bytes(T::s);
  }
}

// The sums of a group of tokens for a panel's rows, by token tile and band. They stay here until all columns
// have been added: the rows of a result often lie a power of two apart, where caches hold few of them.
struct alignas(64) GroupSums {
  float of[2][kPanelBands][kTileTokens][16];
};
static_assert(sizeof(GroupSums) == kTileSumBytes && kGroupTokens == kTileGroup);

// sums += the group's activations times a panel. `stride` bytes lie between the records of neighbouring
// tokens; 0 where they lie anywhere.
template <bool kTwoTiles, bool kTwoBands>
inline void multiply_group(const uint8_t* panel, int64_t tiles, const uint8_t* const* tokens, int count,
                           int64_t stride, GroupSums& sums) {
  constexpr int64_t step = (kTwoBands ? 2 : 1) * kTileBytes;
  alignas(64) uint8_t gathered[kGroupTokens][64];
  _tile_loadd(0, sums.of[0][0], 64);
  if constexpr (kTwoBands) _tile_loadd(1, sums.of[0][1], 64);
  if constexpr (kTwoTiles) _tile_loadd(2, sums.of[1][0], 64);
  if constexpr (kTwoTiles && kTwoBands) _tile_loadd(3, sums.of[1][1], 64);
  for (int64_t t = 0; t < tiles; ++t, panel += step) {
    const uint8_t *low = tokens[0] + 64 * t, *high = tokens[kTwoTiles ? kTileTokens : 0] + 64 * t;
    int64_t between = stride;
    if (stride == 0) {
      for (int m = 0; m < count; ++m) _mm512_store_si512(gathered[m], _mm512_loadu_si512(tokens[m] + 64 * t));
      low = gathered[0];
      high = gathered[kTileTokens];
      between = 64;
    }
    _tile_loadd(6, panel, 64);
    _tile_loadd(4, low, between);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoBands) {
      _tile_loadd(7, panel + kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTwoTiles) {
      _tile_loadd(5, high, between);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kTwoBands) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums.of[0][0], 64);
  if constexpr (kTwoBands) _tile_stored(1, sums.of[0][1], 64);
  if constexpr (kTwoTiles) _tile_stored(2, sums.of[1][0], 64);
  if constexpr (kTwoTiles && kTwoBands) _tile_stored(3, sums.of[1][1], 64);
}

// Where the sums of a group start, and where they go; rows [row, rows) of `to`, `between` floats a token.
inline void start_sums(GroupSums& sums, int bands, int count, const float* bias, int64_t row, int64_t rows) {
  for (int v = 0; v < bands; ++v) {
    const vf first = bias ? load_rows(bias, row + v * kWidth, rows) : vzero();
    for (int m = 0; m < count; ++m) vstore(sums.of[m / kTileTokens][v][m % kTileTokens], first);
  }
}
inline void store_sums(const GroupSums& sums, int bands, int count, float* to, int64_t between, int64_t row,
                       int64_t rows) {
  for (int m = 0; m < count; ++m) {
    for (int v = 0; v < bands; ++v)
      store_rows(to + m * between, row + v * kWidth, rows,
                 vload(sums.of[m / kTileTokens][v][m % kTileTokens]));
  }
}

template <Format kFormat>
void tile_run(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last,
              uint8_t* scratch) {
  GroupSums* all_sums = reinterpret_cast<GroupSums*>(scratch + kTilePanelBytes);
  const int64_t all_tiles = call.columns / kTileColumns;
  int configured = 0;
  each_panel<kFormat>(
      call, begin, end, first, last, kGroupTokens,
      [scratch](int band, const uint8_t* header, int64_t tiles, int bands) {
        unpack_tiles<kFormat>(header, tiles, scratch + band * kTileBytes, bands * kTileBytes);
      },
      [&](int bands, int64_t tiles, int64_t start, int64_t token, int count, const Sums& s) {
        if (count != configured) {
          configure_tiles(count);
          configured = count;
        }
        GroupSums& sums = all_sums[(token - first) / kGroupTokens];
        if (start == 0) start_sums(sums, bands, count, s.bias, s.row, s.rows);
        const uint8_t* x[kGroupTokens];
        for (int m = 0; m < count; ++m) {
          const int64_t index = call.order ? call.order[token + m] : token + m;
          x[m] = call.x + index * call.x_stride + 64 * start;
        }
        const int64_t stride = call.order ? 0 : call.x_stride;
        if (count > kTileTokens) {
          bands == 2 ? multiply_group<true, true>(scratch, tiles, x, count, stride, sums)
                     : multiply_group<true, false>(scratch, tiles, x, count, stride, sums);
        } else {
          bands == 2 ? multiply_group<false, true>(scratch, tiles, x, count, stride, sums)
                     : multiply_group<false, false>(scratch, tiles, x, count, stride, sums);
        }
        if (start + tiles == all_tiles) store_sums(sums, bands, count, s.y, s.y_stride, s.row, s.rows);
      });
  _tile_release();
}

template <Format kFormat>
void tile_panel(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last,
                uint8_t* scratch) {
  constexpr int64_t most = kTileGroup * kTileGroups;
  for (; first < last; first += most)
    tile_run<kFormat>(call, begin, end, first, last - first < most ? last : first + most, scratch);
}

}  // namespace
}  // namespace ktc::kernels
