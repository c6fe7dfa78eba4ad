// One token times bands in several places of memory: see streams.hpp.
#pragma once

#include "kernels/linear/integer.inl.hpp"
#include "kernels/linear/streams.hpp"

namespace ktc::kernels {
namespace {

// So far ahead lines are asked for, in all places together.
constexpr int64_t kStreamsAhead = 8 << 10;

template <Format kFormat, int kCount>
inline void multiply_streams(const StreamCall& call) {
  using T = Traits<kFormat>;
  static_assert(kParts == 1 && kDirect);
  constexpr int halves = T::halves, lines_a_half = 8 / halves;
  const int64_t bytes = band_bytes(kFormat, call.columns), all = call.columns / kTileColumns;
  vf sum[kCount];
  const ActivationBlock* x[kCount];
#pragma GCC unroll 4
  for (int s = 0; s < kCount; ++s) {
    sum[s] = call.bias[s] ? vload(call.bias[s]) : vzero();
    x[s] = reinterpret_cast<const ActivationBlock*>(call.x[s]);
  }
  int64_t at = 0, asked = 0;
  for (int64_t start = 0; start < all; start += kChunkTiles) {
    const int tiles = static_cast<int>(all - start < kChunkTiles ? all - start : kChunkTiles);
    const int64_t header = at;
    at += header_bytes(T::s.scales, tiles);
    for (int t = 0; t < tiles; ++t, at += tile_bytes(T::s)) {
      for (const int64_t until = at + tile_bytes(T::s) + kStreamsAhead / kCount; asked < until; asked += 64) {
#pragma GCC unroll 4
        for (int s = 0; s < kCount; ++s)
          __builtin_prefetch(asked < bytes ? call.band[s] + asked : call.after[s] + (asked - bytes));
      }
#pragma GCC unroll 4
      for (int s = 0; s < kCount; ++s) {
        const ActivationBlock& with = x[s][start + t];
        vb lines[8];
        decode_tile<kFormat>(call.band[s] + at, 0, lines);
#pragma GCC unroll 2
        for (int half = 0; half < halves; ++half) {
          const uint8_t* scales = call.band[s] + header;
          vi total = vseti(0), other = vseti(0);
          if constexpr (T::shift >= 0) total = vshl<T::shift>(vseti(minus_of<halves>(with, half)));
#pragma GCC unroll 8
          for (int j = half * lines_a_half; j < (half + 1) * lines_a_half; j += 2) {
            total = dot(total, lines[j], bbroadcast(with.codes + 4 * j));
            other = dot(other, lines[j + 1], bbroadcast(with.codes + 4 * j + 4));
          }
          sum[s] = vfma(vtofloat(vaddi(total, other)),
                        tile_scale<T::s.scales>(scales, t, half, 0) * vset(with.scale), sum[s]);
          if constexpr (T::min) {
            sum[s] = vfma(tile_min<T::s.scales>(scales, tiles, t, half, 0), vset(sum_of<halves>(with, half)),
                          sum[s]);
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int s = 0; s < kCount; ++s) vstore(call.sums + kBandRows * s, sum[s]);
}

template <Format kFormat>
void stream_bands(const StreamCall& call) {
  static_assert(kStreams == 4);
  switch (call.count) {
    case 1:
      return multiply_streams<kFormat, 1>(call);
    case 2:
      return multiply_streams<kFormat, 2>(call);
    case 3:
      return multiply_streams<kFormat, 3>(call);
    default:
      return multiply_streams<kFormat, 4>(call);
  }
}

}  // namespace
}  // namespace ktc::kernels
