// Integer linear kernels over activations in groups of 256 columns, for AVX-512 VNNI: a tile is decoded in
// registers and meets several tokens, as in direct.inl.hpp.
//
// Dot products, multiplications and multiply-adds share two pipes (Zen 4), shifts, additions and conversions
// have others. With a float scale a block, 16 rows x 32 columns cost a token 8 dot products, the product of
// two scales and two multiply-adds. Here scales of activations within a group differ by powers of two, which
// are shifts, and what is summed over a group are integers:
// - scales of 16 columns: the products of the halves of a tile, as int16, meet the halves' integer scales,
// both in
//   one vpdpwssd;
// - Q4_K: the same with the products of two tiles;
// - others: one multiply-add a tile;
// - minima of k-quants: one vpdpwssd for two of them.
// ActivationGroup says why nothing overflows; integers are exact.
#pragma once

#include "kernels/linear/direct.inl.hpp"
#include "kernels/linear/quantize_groups.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr int kGroupTiles = kGroupColumns / kTileColumns;
static_assert(kGroupTiles == kChunkTiles);

enum class GroupPath { halves, pairs, tiles };

template <Format kFormat>
struct GroupTraits {
  static constexpr Spec s = spec(kFormat);
  static constexpr int shift = s.offset_log2;  // of the codes' offset
  static constexpr GroupPath path = scale_columns(s.scales) == 16                    ? GroupPath::halves
                                    : s.scales == Scales::k32_min && s.largest <= 15 ? GroupPath::pairs
                                                                                     : GroupPath::tiles;
  // Tokens that meet a tile at once: of two tiles, the products of the first wait in registers.
  static constexpr int tokens = path == GroupPath::pairs ? 8 : 12;
};

// The low words of each lane, those of `high` above those of `low`.
inline vi pair_words(vi low, vi high) {
  return _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16));
}
inline vi signed_bytes(const uint8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Integer scales of the halves of tile `tile`, or, with one a tile, of it and the next one.
template <Scales kScales>
inline vi scale_pairs(const uint8_t* header, int tile) {
  if constexpr (kScales == Scales::k32_min)
    return pair_words(vload_bytes(header + 64 + 16 * tile), vload_bytes(header + 80 + 16 * tile));
  if constexpr (kScales == Scales::k16) {
    const uint8_t* p = header + 32 + 32 * tile;
    return pair_words(signed_bytes(p), signed_bytes(p + 16));
  }
  if constexpr (kScales == Scales::k16_min) {
    const uint8_t* p = header + 64 + 32 * tile;
    return _mm512_and_si512(pair_words(vload_bytes(p), vload_bytes(p + 16)), _mm512_set1_epi16(15));
  }
  return vseti(0);
}

// The minima of a chunk of a k-quant, in pairs as scales are.
template <Scales kScales>
struct KMinima {
  static constexpr int count = kScales == Scales::k32_min ? 4 : kScales == Scales::k16_min ? 8 : 0;
  vi pairs[count ? count : 1];
  vf scale;

  explicit KMinima(const uint8_t* header) {
    if constexpr (count > 0) {
      scale = vload_half(reinterpret_cast<const uint16_t*>(header + 32));
#pragma GCC unroll 8
      for (int i = 0; i < count; ++i) {
        const uint8_t* p = header + (count == 4 ? 64 + 128 : 64) + 32 * i;
        pairs[i] = pair_words(vload_bytes(p), vload_bytes(p + 16));
        if constexpr (count == 8)
          pairs[i] = _mm512_and_si512(_mm512_srli_epi16(pairs[i], 4), _mm512_set1_epi16(15));
      }
    }
  }

  // `value` less what the minima make with a token's activations.
  vf subtract(const ActivationGroup& x, vf value) const {
    if constexpr (count == 0) return value;
    vi total = vseti(0);
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i)
      total = _mm512_dpwssd_epi32(total, pairs[i], vseti(count == 4 ? x.pair_sums[i] : x.half_sums[i]));
    return _mm512_fnmadd_ps(scale, vtofloat(total), value);
  }
};

// The products of `lines` and a token's codes, from `start` on, in two chains, which hide more of their
// latency.
inline vi dot_lines(const vb (&lines)[8], const int8_t* codes, vi start) {
  vi total = start, other = vseti(0);
#pragma GCC unroll 8
  for (int j = 0; j < 8; j += 2) {
    total = dot(total, lines[j], bbroadcast(codes + 4 * j));
    other = dot(other, lines[j + 1], bbroadcast(codes + 4 * j + 4));
  }
  return vaddi(total, other);
}

// sums += the products of a whole group of columns, a chunk of the weight from `header` on, and kTokens
// tokens.
template <Format kFormat, int kTokens>
inline void group_integers(const uint8_t* header, const ActivationGroup* const (&x)[kTokens], int64_t group,
                           const uint8_t* stop, int64_t jump, float (*sums)[kBandRows]) {
  using T = GroupTraits<kFormat>;
  constexpr Scales kind = T::s.scales;
  constexpr bool pairs = T::path == GroupPath::pairs;
  constexpr int bytes = tile_bytes(T::s), step = pairs ? 2 : 1;
  const uint8_t* tile = header + header_bytes(kind, kGroupTiles);
  vi total[kTokens];
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) total[m] = vseti(0);
#pragma GCC unroll 1
  for (int t = 0; t < kGroupTiles; t += step, tile += step * bytes) {
    fetch<kTokens, step * bytes>(tile, stop, jump);
    const vi scales = scale_pairs<kind>(header, t);
    vb lines[8];
    decode_tile<kFormat>(tile, 0, lines);
    if constexpr (pairs) {
      vi low[kTokens];
#pragma GCC unroll 12
      for (int m = 0; m < kTokens; ++m) low[m] = dot_lines(lines, x[m][group].codes + 32 * t, vseti(0));
      decode_tile<kFormat>(tile + bytes, 0, lines);
#pragma GCC unroll 12
      for (int m = 0; m < kTokens; ++m) {
        const vi high = dot_lines(lines, x[m][group].codes + 32 * t + 32, vseti(0));
        const vi scale = _mm512_sllv_epi16(scales, vseti(x[m][group].pair_shifts[t / 2]));
        total[m] = _mm512_dpwssd_epi32(total[m], pair_words(low[m], high), scale);
      }
    } else {
#pragma GCC unroll 12
      for (int m = 0; m < kTokens; ++m) {
        const ActivationGroup& with = x[m][group];
        vi low = vseti(0), high = vseti(0);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          low = dot(low, lines[j], bbroadcast(with.codes + 32 * t + 4 * j));
          high = dot(high, lines[j + 4], bbroadcast(with.codes + 32 * t + 4 * j + 16));
        }
        vi both = pair_words(low, high);  // modulo 2^16 until the offset is off
        if constexpr (T::shift == 5) both = _mm512_add_epi16(both, vseti(with.half_offsets[t]));
        if constexpr (T::shift >= 0 && T::shift < 5)
          both = _mm512_add_epi16(both, _mm512_srai_epi16(vseti(with.half_offsets[t]), 5 - T::shift));
        total[m] = _mm512_dpwssd_epi32(total[m], both, _mm512_sllv_epi16(scales, vseti(with.half_shifts[t])));
      }
    }
  }
  const vf d = vload_half(reinterpret_cast<const uint16_t*>(header));
  const KMinima<kind> minima(header);
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    const vf value = minima.subtract(x[m][group], d * vtofloat(total[m]));
    vstore(sums[m], vfma(vset(x[m][group].scale), value, vload(sums[m])));
  }
}

// The same of a chunk of `tiles` tiles, with floats as scales of its tiles.
template <Format kFormat, int kTokens>
inline void group_floats(const uint8_t* header, int tiles, const ActivationGroup* const (&x)[kTokens],
                         int64_t group, const uint8_t* stop, int64_t jump, float (*sums)[kBandRows]) {
  using T = GroupTraits<kFormat>;
  constexpr Scales kind = T::s.scales;
  constexpr int bytes = tile_bytes(T::s);
  const uint8_t* tile = header + header_bytes(kind, tiles);
  vf total[kTokens];
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) total[m] = vzero();
#pragma GCC unroll 1
  for (int t = 0; t < tiles; ++t, tile += bytes) {
    fetch<kTokens, bytes>(tile, stop, jump);
    const vf scale = tile_scale<kind>(header, t, 0, 0);
    const vf least = kind == Scales::half_min ? tile_min<kind>(header, tiles, t, 0, 0) : vzero();
    vb lines[8];
    decode_tile<kFormat>(tile, 0, lines);
#pragma GCC unroll 12
    for (int m = 0; m < kTokens; ++m) {
      const ActivationGroup& with = x[m][group];
      vi start = vseti(0);
      if constexpr (T::shift >= 0) start = vshl<T::shift>(vseti(with.minus[t]));
      const vi product = dot_lines(lines, with.codes + 32 * t, start);
      total[m] = vfma(vtofloat(_mm512_sllv_epi32(product, vseti(with.shifts[t]))), scale, total[m]);
      if constexpr (kind == Scales::half_min) total[m] = vfma(least, vset(with.sums[t]), total[m]);
    }
  }
  const KMinima<kind> minima(header);
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m)
    vstore(sums[m], vfma(vset(x[m][group].scale), minima.subtract(x[m][group], total[m]), vload(sums[m])));
}

template <Format kFormat, int kTokens>
void group_tokens(const LinearCall& call, int64_t begin, int64_t end, int64_t first) {
  using T = GroupTraits<kFormat>;
  const ActivationGroup* x[kTokens];
  for (int m = 0; m < kTokens; ++m) x[m] = reinterpret_cast<const ActivationGroup*>(record(call, first + m));
  const uint8_t* const stop = call.weight + end * call.band_stride;
  const int64_t jump = call.after ? call.after - stop : 0, all = call.columns / kTileColumns;
  for (int64_t band = begin; band < end; ++band) {
    const int64_t row = band * kBandRows;
    alignas(64) float sums[kTokens][kBandRows];
    const vf bias = call.bias ? load_rows(call.bias, row, call.rows) : vzero();
    for (int m = 0; m < kTokens; ++m) {
      vstore(sums[m], bias);
      // A line of the result is written once in a while and rarely in a cache: ask for it early.
      if (kTokens >= 4) __builtin_prefetch(call.y + (first + m) * call.y_stride + row, 1);
    }
    const uint8_t* header = call.weight + band * call.band_stride;
    for (int64_t start = 0; start < all; start += kGroupTiles) {
      const int tiles = static_cast<int>(all - start < kGroupTiles ? all - start : kGroupTiles);
      fetch<kTokens, header_bytes(T::s.scales, kGroupTiles)>(header, stop, jump);
      if constexpr (T::path == GroupPath::tiles) {
        group_floats<kFormat, kTokens>(header, tiles, x, start / kGroupTiles, stop, jump, sums);
      } else {
        group_integers<kFormat, kTokens>(header, x, start / kGroupTiles, stop, jump, sums);
      }
      header += header_bytes(T::s.scales, tiles) + tiles * tile_bytes(T::s);
    }
    for (int m = 0; m < kTokens; ++m)
      store_rows(call.y + (first + m) * call.y_stride, row, call.rows, vload(sums[m]));
  }
}

template <Format kFormat>
void group_count(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int tokens) {
  switch (tokens) {
    case 1:
      return group_tokens<kFormat, 1>(call, begin, end, first);
    case 2:
      return group_tokens<kFormat, 2>(call, begin, end, first);
    case 3:
      return group_tokens<kFormat, 3>(call, begin, end, first);
    case 4:
      return group_tokens<kFormat, 4>(call, begin, end, first);
    case 5:
      return group_tokens<kFormat, 5>(call, begin, end, first);
    case 6:
      return group_tokens<kFormat, 6>(call, begin, end, first);
    case 7:
      return group_tokens<kFormat, 7>(call, begin, end, first);
    case 8:
      return group_tokens<kFormat, 8>(call, begin, end, first);
    default:
      return group_tokens<kFormat, GroupTraits<kFormat>::tokens>(call, begin, end, first);
  }
}

// How many of `left` tokens to take next: counts that exist, and none much smaller than the others.
template <Format kFormat>
inline int64_t next_count(int64_t left) {
  constexpr int64_t most = GroupTraits<kFormat>::tokens;
  if (left <= 8) return left;
  if (most > 8 && (left == most || left > 16)) return most;
  const int64_t parts = (left + 7) / 8;
  return (left + parts - 1) / parts;
}

template <Format kFormat>
void group(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last) {
  if (next_count<kFormat>(last - first) == last - first)
    return group_count<kFormat>(call, begin, end, first, static_cast<int>(last - first));
  // Band by band, so that a band comes from memory once and from L1 for the other tokens.
  LinearCall one = call;
  for (int64_t band = begin; band < end; ++band) {
    one.after = band + 1 < end ? nullptr : call.after;
    int64_t tokens;
    for (int64_t token = first; token < last; token += tokens) {
      tokens = next_count<kFormat>(last - token);
      group_count<kFormat>(one, band, band + 1, token, static_cast<int>(tokens));
    }
  }
}

// The kernel of a format, or null.
template <Format kFormat>
constexpr decltype(&group<kFormat>) group_of() {
  if constexpr (takes_groups(kFormat)) return group<kFormat>;
  return nullptr;
}
template <Format kFormat>
constexpr auto kGroup = group_of<kFormat>();

}  // namespace
}  // namespace ktc::kernels
