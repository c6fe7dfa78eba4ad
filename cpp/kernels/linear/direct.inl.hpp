// Integer linear kernels for few tokens: a tile is decoded in registers and meets a group of tokens.
#pragma once

#include "kernels/linear/integer.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr int kDirectGroup = kWidth == 16 ? 8 : 4;
// How far ahead weights are prefetched: what memory delivers in its latency.
constexpr int64_t kAhead = 3072;

template <Format kFormat, int kTokens>
void direct_tokens(const LinearCall& call, int64_t begin, int64_t end, int64_t first) {
  using T = Traits<kFormat>;
  constexpr int lines_a_half = 8 / T::halves, group_lines = smaller(T::group, lines_a_half);
  constexpr int bytes = tile_bytes(T::s), halves = T::halves;
  const ActivationBlock* x[kTokens];
  for (int m = 0; m < kTokens; ++m) x[m] = record(call, first + m);
  const uint8_t* const stop = call.weight + end * call.band_stride;
  const int64_t jump = call.after ? call.after - stop : 0;
  for (int64_t band = begin; band < end; ++band) {
    vf sum[kParts][kTokens];
    for (int part = 0; part < kParts; ++part) {
      const int64_t row = band * kBandRows + part * kWidth;
      for (int m = 0; m < kTokens; ++m)
        sum[part][m] = call.bias ? load_rows(call.bias, row, call.rows) : vzero();
    }
    const uint8_t* header = call.weight + band * call.band_stride;
    const int64_t all = call.columns / kTileColumns;
    for (int64_t start = 0; start < all; start += kChunkTiles) {
      const int tiles = static_cast<int>(all - start < kChunkTiles ? all - start : kChunkTiles);
      const uint8_t* tile = header + header_bytes(T::s.scales, tiles);
      for (int t = 0; t < tiles; ++t, tile += bytes) {
        const uint8_t* ahead = tile + kAhead;
        if (ahead >= stop) ahead += jump;
#pragma GCC unroll 8
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i);
        const int64_t block = start + t;
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          vb lines[8];
          decode_tile<kFormat>(tile, part, lines);
#pragma GCC unroll 2
          for (int half = 0; half < halves; ++half) {
            const vf scale = tile_scale<T::s.scales>(header, t, half, part);
            const vf least = T::min ? tile_min<T::s.scales>(header, tiles, t, half, part) : vzero();
#pragma GCC unroll 8
            for (int m = 0; m < kTokens; ++m) {
              const ActivationBlock& with = x[m][block];
              vi total = vseti(0);
              if constexpr (T::shift >= 0) total = vshl<T::shift>(vseti(minus_of<halves>(with, half)));
#pragma GCC unroll 8
              for (int i = 0; i < lines_a_half; i += group_lines) {
                vp group = kDirect ? total : vseti(0);
#pragma GCC unroll 8
                for (int j = half * lines_a_half + i; j < half * lines_a_half + i + group_lines; ++j)
                  group = dot_either<T::offset_in_dot>(group, lines[j], bbroadcast(with.codes + 4 * j));
                total = kDirect ? group : vaddi(total, widen(group));
              }
              sum[part][m] = vfma(vtofloat(total), scale * vset(with.scale), sum[part][m]);
              if constexpr (T::min)
                sum[part][m] = vfma(least, vset(sum_of<halves>(with, half)), sum[part][m]);
            }
          }
        }
      }
      header = tile;
    }
    for (int part = 0; part < kParts; ++part) {
      for (int m = 0; m < kTokens; ++m) {
        store_rows(call.y + (first + m) * call.y_stride, band * kBandRows + part * kWidth, call.rows,
                   sum[part][m]);
      }
    }
  }
}

template <Format kFormat>
void direct_group(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int tokens) {
  switch (tokens) {
    case 1:
      return direct_tokens<kFormat, 1>(call, begin, end, first);
    case 2:
      return direct_tokens<kFormat, 2>(call, begin, end, first);
    case 3:
      return direct_tokens<kFormat, 3>(call, begin, end, first);
    case 4:
      return direct_tokens<kFormat, 4>(call, begin, end, first);
    default:
      return direct_tokens<kFormat, kDirectGroup>(call, begin, end, first);
  }
}

template <Format kFormat>
void direct(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last) {
  if (last - first <= 4 || last - first == kDirectGroup) {
    return direct_group<kFormat>(call, begin, end, first, static_cast<int>(last - first));
  }
  // Band by band, so that a band comes from memory once and from L1 for the other groups.
  LinearCall one = call;
  for (int64_t band = begin; band < end; ++band) {
    one.after = band + 1 < end ? nullptr : call.after;
    int64_t tokens;
    for (int64_t token = first; token < last; token += tokens) {
      tokens = last - token >= kDirectGroup ? kDirectGroup : last - token < 4 ? last - token : 4;
      direct_group<kFormat>(one, band, band + 1, token, static_cast<int>(tokens));
    }
  }
}

}  // namespace
}  // namespace ktc::kernels
