// One token times bands in several places of memory: see streams.hpp.
#pragma once

#include "kernels/linear/integer.inl.hpp"
#include "kernels/linear/streams.hpp"

namespace ktc::kernels {
namespace {

// So far ahead in each place lines are asked for. More than the processor's own prefetching needs, and
// enough to have the first lines of the next bands under way in time.
constexpr int64_t kStreamAhead = 2 << 10;

template <Format kFormat>
void stream_bands(const StreamCall& call) {
  using T = Traits<kFormat>;
  static_assert(kParts == 1 && kDirect);
  constexpr int halves = T::halves, lines_a_half = 8 / halves;
  const int64_t bytes = band_bytes(kFormat, call.columns), all = call.columns / kTileColumns;
  vf sum[kStreams];
  const ActivationBlock* x[kStreams];
#pragma GCC unroll 4
  for (int s = 0; s < kStreams; ++s) {
    sum[s] = call.bias[s] ? vload(call.bias[s]) : vzero();
    x[s] = reinterpret_cast<const ActivationBlock*>(call.x[s]);
  }
  int64_t at = 0, asked = 0;
  for (int64_t start = 0; start < all; start += kChunkTiles) {
    const int tiles = static_cast<int>(all - start < kChunkTiles ? all - start : kChunkTiles);
    const int64_t header = at;
    at += header_bytes(T::s.scales, tiles);
    for (int t = 0; t < tiles; ++t, at += tile_bytes(T::s)) {
      for (const int64_t until = at + tile_bytes(T::s) + kStreamAhead; asked < until; asked += 64) {
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s)
          __builtin_prefetch(asked < bytes ? call.band[s] + asked : call.after[s] + (asked - bytes));
      }
#pragma GCC unroll 4
      for (int s = 0; s < kStreams; ++s) {
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
  for (int s = 0; s < kStreams; ++s) vstore(call.sums + kBandRows * s, sum[s]);
}

}  // namespace
}  // namespace ktc::kernels
