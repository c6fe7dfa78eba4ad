// Integer linear kernels for few tokens: a tile is decoded in registers and meets a group of tokens.
#pragma once

#include "kernels/linear/ahead.inl.hpp"
#include "kernels/linear/integer.inl.hpp"

namespace ktc::kernels {
namespace {

// Tokens that meet a tile at once, as many as registers hold: 8 lines of codes, and a sum a token.
constexpr int kDirectGroup = kWidth == 16 ? 16 : 4;
// One token is faster than memory, on the machine of ahead.inl.hpp. The processor's own prefetching fills L2,
// and requests for every line, which wait in the few places of L1, are slower: 44 of 53 GB/s instead of 48.
// But it ends with each page of 4 KiB, so the first lines of a page are asked for two pages ahead.
constexpr int64_t kPage = 4 << 10, kPagesAhead = 2 * kPage;
constexpr int kPageLines = 6;
// It finds no order in the lines of some formats, whose headers are long or whose tiles have 5 lines. There
// every line is asked for.
constexpr int64_t kAheadHeaders = 8 << 10, kPageFar = 64 << 10, kAheadTiles = 2 << 10;

enum class Requests { pages, lines_of_headers, lines_of_tiles };

constexpr Requests requests_of(const Spec& s) {
  if (s.scales == Scales::half_min) return Requests::lines_of_headers;
  return s.low_bits == 4 && s.high_bits == 1 ? Requests::lines_of_tiles : Requests::pages;
}

// The first lines of the page kPagesAhead behind `at`, or of the next run.
[[gnu::always_inline]] inline void fetch_page(const uint8_t* at, const uint8_t* stop, int64_t jump) {
  const uint8_t* page = at + kPagesAhead;
  if (page >= stop && jump != 0) {
    const uint8_t* const first = stop + jump;
    page += jump;
    page -= reinterpret_cast<uintptr_t>(page) % kPage;
    if (page < first) page = first;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kPageLines; ++i) __builtin_prefetch(page + 64 * i, 0, 2);
}

// The same as `fetch` for one token.
template <Format kFormat, int kBytes>
[[gnu::always_inline]] inline void fetch_alone(const uint8_t* at, const uint8_t* stop, int64_t jump) {
  constexpr Requests requests = requests_of(spec(kFormat));
  const bool new_page = reinterpret_cast<uintptr_t>(at) % kPage < kBytes;
  if constexpr (requests != Requests::pages) {
    constexpr int64_t ahead = requests == Requests::lines_of_tiles ? kAheadTiles : kAheadHeaders;
    const uint8_t* line = onward(at + ahead, stop, jump);
#pragma GCC unroll 16
    for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(line + i);
  }
  if (!new_page) return;
  if constexpr (requests == Requests::lines_of_headers) {
    __builtin_prefetch(onward(at + kPageFar, stop, jump), 0, 2);
  } else {
    fetch_page(at, stop, jump);
  }
}

// Either, as direct_tokens needs it.
template <Format kFormat, int kTokens, int kBytes>
[[gnu::always_inline]] inline void fetch_for(const uint8_t* at, const uint8_t* stop, int64_t jump) {
  if constexpr (kTokens == 1) {
    fetch_alone<kFormat, kBytes>(at, stop, jump);
  } else {
    fetch<kBytes>(at, stop, jump);
  }
}

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
      fetch_for<kFormat, kTokens, header_bytes(T::s.scales, kChunkTiles)>(header, stop, jump);
      for (int t = 0; t < tiles; ++t, tile += bytes) {
        fetch_for<kFormat, kTokens, bytes>(tile, stop, jump);
        const int64_t block = start + t;
        // A line of the result is written once in a while and rarely in a cache: ask for it early.
        if (kTokens >= 8 && block < kTokens)
          __builtin_prefetch(call.y + (first + block) * call.y_stride + band * kBandRows, 1);
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          vb lines[8];
          decode_tile<kFormat>(tile, part, lines);
#pragma GCC unroll 2
          for (int half = 0; half < halves; ++half) {
            const vf scale = tile_scale<T::s.scales>(header, t, half, part);
            const vf least = T::min ? tile_min<T::s.scales>(header, tiles, t, half, part) : vzero();
#pragma GCC unroll 16
            for (int m = 0; m < kTokens; ++m) {
              const ActivationBlock& with = x[m][block];
              vi total = vseti(0);
              if constexpr (T::shift >= 0) total = vshl<T::shift>(vseti(minus_of<halves>(with, half)));
              if constexpr (kDirect) {
                // Two chains of dot products: one would keep too few tokens in flight to hide its latency.
                vi other = vseti(0);
#pragma GCC unroll 8
                for (int j = half * lines_a_half; j < (half + 1) * lines_a_half; j += 2) {
                  total = dot(total, lines[j], bbroadcast(with.codes + 4 * j));
                  other = dot(other, lines[j + 1], bbroadcast(with.codes + 4 * j + 4));
                }
                total = vaddi(total, other);
              } else {
#pragma GCC unroll 8
                for (int i = half * lines_a_half; i < (half + 1) * lines_a_half; i += group_lines) {
                  vp group = vseti(0);
#pragma GCC unroll 8
                  for (int j = i; j < i + group_lines; ++j)
                    group = dot_either<T::offset_in_dot>(group, lines[j], bbroadcast(with.codes + 4 * j));
                  total = vaddi(total, widen(group));
                }
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
    case 5:
      return direct_tokens<kFormat, smaller(5, kDirectGroup)>(call, begin, end, first);
    case 6:
      return direct_tokens<kFormat, smaller(6, kDirectGroup)>(call, begin, end, first);
    case 7:
      return direct_tokens<kFormat, smaller(7, kDirectGroup)>(call, begin, end, first);
    case 8:
      return direct_tokens<kFormat, smaller(8, kDirectGroup)>(call, begin, end, first);
    case 12:
      return direct_tokens<kFormat, smaller(12, kDirectGroup)>(call, begin, end, first);
    default:
      return direct_tokens<kFormat, kDirectGroup>(call, begin, end, first);
  }
}

// How many of `left` tokens to take next: groups that exist, and none much smaller than the others.
inline int64_t next_group(int64_t left) {
  if constexpr (kDirectGroup == 4) return left < 4 ? left : 4;
  return left <= 8 ? left : left == 16 || left >= 20 ? 16 : left == 12 || left > 16 ? 12 : (left + 1) / 2;
}

template <Format kFormat>
void direct(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last) {
  if (next_group(last - first) == last - first) {
    return direct_group<kFormat>(call, begin, end, first, static_cast<int>(last - first));
  }
  // Band by band, so that a band comes from memory once and from L1 for the other groups.
  LinearCall one = call;
  for (int64_t band = begin; band < end; ++band) {
    one.after = band + 1 < end ? nullptr : call.after;
    int64_t tokens;
    for (int64_t token = first; token < last; token += tokens) {
      tokens = next_group(last - token);
      direct_group<kFormat>(one, band, band + 1, token, static_cast<int>(tokens));
    }
  }
}

}  // namespace
}  // namespace ktc::kernels
