// Products of larger blocks on AMX tiles: activations lie in tiles already, many rows meet many tokens.
//
// For each kTileDepth tiles of columns and each 32 rows, weights are unpacked to bf16 in L1 and meet the
// groups of tokens, two at a time; sums of two groups and two bands are in tiles meanwhile, and in `sums`
// between the columns. With all four operands of a step from L1 a core reaches the tiles' peak, and
// activations from L2 cost nothing; what costs is storing sums to lines that are not in L1, so these are
// asked for ahead.
#pragma once

#include "kernels/linear/tiles.inl.hpp"

namespace ktc::kernels {
namespace {

void place_token(const float* x, int64_t columns, uint8_t* tiles) {
  for (int64_t i = 0; i < columns; i += 32, tiles += kTileBytes)
    _mm512_storeu_si512(tiles, (__m512i)_mm512_cvtne2ps_pbh(vload(x + i + 16), vload(x + i)));
}

void store_token(const float* sums, int64_t stride, int64_t rows, const float* bias, float* y) {
  for (int64_t row = 0; row < rows; row += 2 * kWidth, sums += stride) {
    for (int band = 0; band < 2; ++band) {
      const int64_t at = row + band * kWidth;
      const vf value = vload(sums + 256 * band);
      store_rows(y, at, rows, bias ? value + load_rows(bias, at, rows) : value);
    }
  }
}

// One step, 32 columns: tiles 4 and 5 hold activations, 6 and 7 weights, and each is loaded for the next step
// as soon as it has been used for the last time. Two threads that share a core have no spare tile registers:
// loads right before their use take them twice as long. `kOdd`: the products in the order in which operands
// have arrived.
template <bool kTwoGroups, bool kTwoBands, bool kOdd>
inline void multiply_step(const uint8_t* weights, const uint8_t* low, const uint8_t* high) {
  if constexpr (kTwoGroups && kTwoBands && !kOdd) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(6, weights, 64);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(5, high, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(4, low, 64);
    _tile_loadd(7, weights + kTileBytes, 64);
  } else if constexpr (kTwoGroups && kTwoBands) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(6, weights, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(4, low, 64);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(5, high, 64);
    _tile_loadd(7, weights + kTileBytes, 64);
  } else {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoGroups) _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(6, weights, 64);
    if constexpr (kTwoBands) _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(4, low, 64);
    if constexpr (kTwoGroups) _tile_loadd(5, high, 64);
    if constexpr (kTwoBands) _tile_loadd(7, weights + kTileBytes, 64);
  }
}

// A pair of groups, or the last one alone.
struct Pair {
  const uint8_t *low, *high;
};

// Sums of one pair, whose first operands are in their tiles already; leaves those of the next pair there.
// `first`: sums start from zero. Asks for the sums of the next pair, and where `kAhead` for the activations
// of the next columns.
template <bool kTwoGroups, bool kTwoBands, bool kAhead>
inline void multiply_pair(const uint8_t* panel, int tiles, Pair x, Pair next, float* sums, bool first) {
  if (first) {
    _tile_zero(0);
    if constexpr (kTwoGroups) _tile_zero(2);
    if constexpr (kTwoGroups && kTwoBands) _tile_zero(3);
    if constexpr (kTwoBands) _tile_zero(1);
  } else {
    _tile_loadd(0, sums, 64);
    if constexpr (kTwoGroups) _tile_loadd(2, sums + 512, 64);
    if constexpr (kTwoGroups && kTwoBands) _tile_loadd(3, sums + 768, 64);
    if constexpr (kTwoBands) _tile_loadd(1, sums + 256, 64);
  }
  const uint8_t* next_sums = reinterpret_cast<const uint8_t*>(sums + kTileSums);
  const auto ask = [&](int t) {
#pragma GCC unroll 8
    for (int i = 0; i < 64 / kTileDepth; ++i)
      __builtin_prefetch(next_sums + 64 * (64 / kTileDepth * t + i), 1, 3);
    if constexpr (kAhead) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        __builtin_prefetch(x.low + kTileBytes * (t + kTileDepth) + 64 * i, 0, 2);
        if constexpr (kTwoGroups) __builtin_prefetch(x.high + kTileBytes * (t + kTileDepth) + 64 * i, 0, 2);
      }
    }
  };
  int t = 0;
  for (; t + 2 < tiles; t += 2) {
    const uint8_t *w = panel + 2 * kTileBytes * t, *low = x.low + kTileBytes * t,
                  *high = x.high + kTileBytes * t;
    multiply_step<kTwoGroups, kTwoBands, false>(w + 2 * kTileBytes, low + kTileBytes, high + kTileBytes);
    ask(t);
    multiply_step<kTwoGroups, kTwoBands, true>(w + 4 * kTileBytes, low + 2 * kTileBytes,
                                               high + 2 * kTileBytes);
    ask(t + 1);
  }
  if (t + 2 == tiles) {
    multiply_step<kTwoGroups, kTwoBands, false>(panel + 2 * kTileBytes * (t + 1),
                                                x.low + kTileBytes * (t + 1), x.high + kTileBytes * (t + 1));
    ask(t);
    multiply_step<kTwoGroups, kTwoBands, true>(panel, next.low, next.high);
    ask(t + 1);
  } else {
    multiply_step<kTwoGroups, kTwoBands, false>(panel, next.low, next.high);
    ask(t);
  }
  _tile_stored(0, sums, 64);
  if constexpr (kTwoGroups) _tile_stored(2, sums + 512, 64);
  if constexpr (kTwoGroups && kTwoBands) _tile_stored(3, sums + 768, 64);
  if constexpr (kTwoBands) _tile_stored(1, sums + 256, 64);
}

template <bool kTwoBands, bool kAhead>
inline void multiply_groups(const TileCall& call, int tiles, int64_t start, float* sums, Ahead& weights) {
  const int64_t stride = tile_group_bytes(call.columns), pairs = (call.groups + 1) / 2;
  const int64_t share = (weights.lines * weights.bands + pairs - 1) / pairs;
  const uint8_t* const x = call.x + start * kTileBytes;
  const auto pair = [&](int64_t group) {
    group = group < call.groups ? group : 0;
    return Pair{x + group * stride, x + (group + 1 < call.groups ? group + 1 : group) * stride};
  };
  Pair now = pair(0);
  _tile_loadd(6, call.panel, 64);
  _tile_loadd(4, now.low, 64);
  _tile_loadd(5, now.high, 64);
  if constexpr (kTwoBands) _tile_loadd(7, call.panel + kTileBytes, 64);
  for (int64_t group = 0; group < call.groups; group += 2, sums += kTileSums) {
    const Pair next = pair(group + 2);
    weights.ask(share);
    if (group + 1 < call.groups) {
      multiply_pair<true, kTwoBands, kAhead>(call.panel, tiles, now, next, sums, start == 0);
    } else {
      multiply_pair<false, kTwoBands, kAhead>(call.panel, tiles, now, next, sums, start == 0);
    }
    now = next;
  }
}

template <Format kFormat>
void tile_product(const TileCall& call) {
  using T = Traits<kFormat>;
  constexpr int chunk_bytes = header_bytes(T::s.scales, kChunkTiles) + kChunkTiles * tile_bytes(T::s);
  constexpr int parts = kChunkTiles / kTileDepth;  // of a chunk
  static_assert(parts * kTileDepth == kChunkTiles);
  TileConfiguration configuration;
  for (int tile = 0; tile < 6; ++tile) configuration.set(tile, call.tokens);
  configuration.set(6, 16);
  configuration.set(7, 16);
  load_configuration(configuration);

  const int64_t all = call.columns / kTileColumns, panels = (call.bands + 1) / 2;
  const int64_t depths = (all + kTileDepth - 1) / kTileDepth, pairs = (call.groups + 1) / 2;
  for (int64_t depth = 0; depth < depths; ++depth) {
    const int64_t start = depth * kTileDepth, chunk = depth / parts;
    const int tiles = static_cast<int>(all - start < kTileDepth ? all - start : kTileDepth);
    const int of_chunk =
        static_cast<int>(all - chunk * kChunkTiles < kChunkTiles ? all - chunk * kChunkTiles : kChunkTiles);
    const int place = static_cast<int>(depth % parts) * kTileDepth;
    const bool last_depth = depth + 1 == depths, last_part = last_depth || depth % parts + 1 == parts;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const uint8_t* weights = call.weight + 2 * panel * call.band_stride + chunk * chunk_bytes;
      const int bands = 2 * panel + 1 < call.bands ? 2 : 1;
      for (int band = 0; band < bands; ++band) {
        unpack_chunk<kFormat>(weights + band * call.band_stride, of_chunk, place, tiles,
                              call.panel + band * kTileBytes, 2 * kTileBytes);
      }

      // The chunk that follows, and in the last columns what comes next.
      const uint8_t* from = !last_part   ? nullptr
                            : last_depth ? call.after
                                         : call.weight + (chunk + 1) * chunk_bytes;
      Ahead asked{from + (from ? 2 * panel * call.band_stride : 0), call.band_stride, (chunk_bytes + 63) / 64,
                  from ? bands : 0};

      float* sums = call.sums + panel * pairs * kTileSums;
      const bool next_x = panel + 1 == panels && !last_depth;
      if (bands == 2) {
        next_x ? multiply_groups<true, true>(call, tiles, start, sums, asked)
               : multiply_groups<true, false>(call, tiles, start, sums, asked);
      } else {
        next_x ? multiply_groups<false, true>(call, tiles, start, sums, asked)
               : multiply_groups<false, false>(call, tiles, start, sums, asked);
      }
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace ktc::kernels
