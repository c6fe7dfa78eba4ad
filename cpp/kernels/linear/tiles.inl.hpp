// Linear kernels for many tokens on AMX tiles of bf16: 32 rows x 512 columns are unpacked to bf16 in L1, then
// meet 32 tokens at a time; the products of a panel are summed within the tiles.
//
// Why not tiles of bytes: every 32 columns have scales of their own, so that each product of byte tiles had
// to go through L1 and be scaled by vectors. Measured on Sapphire Rapids, that took 200 ns for 32 x 32 x 32
// products, where AVX-512 VNNI takes 160 and bf16 tiles need no scaling at all. Rounding both sides to bf16
// costs an NMSE of about 3e-6 against float activations; rounding activations to bytes, as the other kernels
// do, costs 3e-5.
#pragma once

#include "kernels/linear/panel.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr int kTileTokens = 16, kGroupTokens = 2 * kTileTokens;
constexpr int64_t kTileBytes = 1024;  // 16 rows x 32 columns of bf16: pairs of columns, 16 rows of each

// As the processor reads it: palette 1, then bytes a row and rows of each of the 8 tiles.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int tile_rows) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = 64;
  }
};

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
  _tile_loadconfig(&tiles);
}

// Two vectors of floats as pairs: [a0 b0 a1 b1 ...] in bf16.
inline __m512i interleave_bf16(vf a, vf b) {
  alignas(64) static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}

void round_record(const float* x, int64_t columns, uint8_t* record) {
  for (int64_t i = 0; i < columns; i += 32)
    _mm512_storeu_si512(record + 2 * i, (__m512i)_mm512_cvtne2ps_pbh(vload(x + i + 16), vload(x + i)));
}

// One line of codes, 16 rows x 4 columns, as two lines of pairs.
inline void unpack_line(vb line, vf scale, vf least, uint8_t* out) {
  const vi byte = _mm512_set1_epi32(0xff);
  const vf k0 = vfma(vtofloat(_mm512_and_si512(line, byte)), scale, least);
  const vf k1 = vfma(vtofloat(_mm512_and_si512(_mm512_srli_epi32(line, 8), byte)), scale, least);
  const vf k2 = vfma(vtofloat(_mm512_and_si512(_mm512_srli_epi32(line, 16), byte)), scale, least);
  const vf k3 = vfma(vtofloat(_mm512_srli_epi32(line, 24)), scale, least);
  _mm512_store_si512(out, interleave_bf16(k0, k1));
  _mm512_store_si512(out + 64, interleave_bf16(k2, k3));
}

// Tiles [0, tiles) from `header` on, the start of a chunk, to bf16 tiles `step` bytes apart.
template <Format kFormat>
inline void unpack_tiles(const uint8_t* header, int64_t tiles, uint8_t* out, int64_t step) {
  using T = Traits<kFormat>;
  constexpr int lines_of_half = 8 / T::halves;
  for (int64_t start = 0; start < tiles; start += kChunkTiles) {
    const int here = static_cast<int>(tiles - start < kChunkTiles ? tiles - start : kChunkTiles);
    const uint8_t* tile = header + header_bytes(T::s.scales, here);
    for (int t = 0; t < here; ++t, tile += tile_bytes(T::s), out += step) {
      vb lines[8];
      decode_tile<kFormat>(tile, 0, lines);
#pragma GCC unroll 2
      for (int half = 0; half < T::halves; ++half) {
        const vf scale = tile_scale<T::s.scales>(header, t, half, 0);
        vf least = vzero();
        if constexpr (T::min) {
          least = tile_min<T::s.scales>(header, here, t, half, 0);
        } else if constexpr (T::shift >= 0) {
          least = scale * vset(-static_cast<float>(1 << T::shift));
        }
#pragma GCC unroll 8
        for (int j = half * lines_of_half; j < (half + 1) * lines_of_half; ++j)
          unpack_line(lines[j], scale, least, out + 128 * j);
      }
    }
    header = tile;
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
