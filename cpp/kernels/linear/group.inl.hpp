// Integer linear kernels over activations in groups of 256 columns, for AVX-512 VNNI: a line of a tile is
// decoded and meets up to 12 tokens, which have a sum each in registers.
//
// Dot products, multiplications and multiply-adds share two pipes (Zen 4), shifts, additions and conversions
// have others. With a float scale a block, 16 rows x 32 columns cost a token 8 dot products, the product of
// two scales and two multiply-adds. Here scales of activations within a group are small integers times
// one float, a shift or the sum of two, and what is summed over a group are integers:
// - scales of 16 columns: the products of the halves of a tile, as the two words of a lane, meet the halves'
//   integer scales in one vpdpwssd;
// - Q4_K: the same with the products of two tiles;
// - others: one multiply-add a tile;
// - minima of k-quants: one vpdpwssd for two of them.
// ActivationGroup says why nothing overflows; integers are exact.
//
// Both words come from one sum: that of the upper word is shifted up and goes on with the products of the
// lower one, from 2^15 on, which keeps the words from borrowing of each other.
#pragma once

#include "kernels/linear/ahead.inl.hpp"
#include "kernels/linear/integer.inl.hpp"
#include "kernels/linear/quantize_groups.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr int kGroupTiles = kGroupColumns / kTileColumns;
static_assert(kGroupTiles == kChunkTiles);
// Tokens that meet a line at once: with two registers each, and others for lines, masks and scales.
constexpr int kGroupMost = 12;

enum class GroupPath { halves, pairs, tiles };

template <Format kFormat>
struct GroupTraits {
  static constexpr Spec s = spec(kFormat);
  static constexpr int shift = s.offset_log2;  // of the codes' offset
  static constexpr GroupPath path = scale_columns(s.scales) == 16                    ? GroupPath::halves
                                    : s.scales == Scales::k32_min && s.largest <= 15 ? GroupPath::pairs
                                                                                     : GroupPath::tiles;
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

// A sum a token; for few tokens several, which hide the latency of dot products.
template <int kTokens>
struct GroupSums {
  static constexpr int chains = kTokens >= 4 ? 1 : kTokens >= 2 ? 2 : 4;
  vi of[chains][kTokens];

  void clear() {
#pragma GCC unroll 4
    for (int c = 0; c < chains; ++c) {
#pragma GCC unroll 12
      for (int m = 0; m < kTokens; ++m) of[c][m] = vseti(0);
    }
  }
  void add(vb line, int j, const ActivationGroup* x, int column) {
#pragma GCC unroll 12
    for (int m = 0; m < kTokens; ++m)
      of[j % chains][m] = dot(of[j % chains][m], line, bbroadcast(x[m].codes + column + 4 * j));
  }
  // Lines kFirst to kFirst + 3 of the tile whose first column is `column`.
  template <Format kFormat, int kFirst>
  void add_half(const uint8_t* tile, const ActivationGroup* x, int column) {
    vb first, second;
    decode_lines<kFormat, kFirst>(tile, first, second);
    add(first, kFirst, x, column);
    add(second, kFirst + 1, x, column);
    decode_lines<kFormat, kFirst + 2>(tile, first, second);
    add(first, kFirst + 2, x, column);
    add(second, kFirst + 3, x, column);
  }
  template <Format kFormat>
  void add_tile(const uint8_t* tile, const ActivationGroup* x, int column) {
    add_half<kFormat, 0>(tile, x, column);
    add_half<kFormat, 4>(tile, x, column);
  }
  vi total(int m) const {
    vi sum = of[0][m];
#pragma GCC unroll 4
    for (int c = 1; c < chains; ++c) sum = vaddi(sum, of[c][m]);
    return sum;
  }
  // Sums become upper words; below them, `start(token)`.
  template <class Start>
  void shift_up(Start&& start) {
#pragma GCC unroll 12
    for (int m = 0; m < kTokens; ++m) {
      of[0][m] = vaddi(vshl<16>(total(m)), start(m));
#pragma GCC unroll 4
      for (int c = 1; c < chains; ++c) of[c][m] = vseti(0);
    }
  }
};

// What a call asks for ahead of its use: weights where a band is read for the first time; and, a few lines at
// a time, the activations that are read after those of this call, so that they are in L2 by then.
struct GroupAhead {
  const uint8_t* stop;  // what would lie here and behind lies `jump` bytes on
  int64_t jump;
  bool first;
  const uint8_t *soon, *soon_end;
  int64_t share;

  template <int kBytes>
  [[gnu::always_inline]] void ask(const uint8_t* at) const {
    if (first) fetch<kBytes>(at, stop, jump);
  }
  [[gnu::always_inline]] void ask_soon() {
    for (int64_t i = 0; i < share && soon < soon_end; ++i, soon += 64) __builtin_prefetch(soon, 0, 2);
  }
};

// sums += the products of a whole group of columns and kTokens tokens.
template <Format kFormat, int kTokens>
inline void group_integers(const uint8_t* header, const ActivationGroup* x, const GroupAhead& ahead,
                           float (*sums)[kBandRows]) {
  using T = GroupTraits<kFormat>;
  constexpr Scales kind = T::s.scales;
  constexpr bool pairs = T::path == GroupPath::pairs;
  constexpr int bytes = tile_bytes(T::s), step = pairs ? 2 : 1;
  const uint8_t* tile = header + header_bytes(kind, kGroupTiles);
  const vi apart = vseti(1 << 15);
  vi total[kTokens];
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) total[m] = vseti(0);
#pragma GCC unroll 1
  for (int t = 0; t < kGroupTiles; t += step, tile += step * bytes) {
    ahead.template ask<step * bytes>(tile);
    GroupSums<kTokens> products;
    products.clear();
    if constexpr (pairs) {
      products.template add_tile<kFormat>(tile + bytes, x, 32 * t + 32);
      products.shift_up([&](int) { return apart; });
      products.template add_tile<kFormat>(tile, x, 32 * t);
    } else {
      products.template add_half<kFormat, 4>(tile, x, 32 * t);
      // Codes up to 63 leave a word until their offset is off.
      products.shift_up([&](int m) { return T::shift == 5 ? vseti(x[m].half_starts[t]) : apart; });
      products.template add_half<kFormat, 0>(tile, x, 32 * t);
    }
    const vi scales = scale_pairs<kind>(header, t);
#pragma GCC unroll 12
    for (int m = 0; m < kTokens; ++m) {
      vi words = _mm512_xor_si512(products.total(m), apart);
      if constexpr (T::shift >= 0 && T::shift < 5) {
        const vi starts = _mm512_xor_si512(vseti(x[m].half_starts[t]), apart);
        words = _mm512_add_epi16(words, _mm512_srai_epi16(starts, 5 - T::shift));
      }
      const vi shifts = vseti(pairs ? x[m].pair_shifts[t / 2] : x[m].half_shifts[t]);
      const vi more = vseti(pairs ? x[m].pair_more[t / 2] : x[m].half_more[t]);
      const vi scale = _mm512_add_epi16(_mm512_sllv_epi16(scales, shifts), _mm512_sllv_epi16(scales, more));
      total[m] = _mm512_dpwssd_epi32(total[m], words, scale);
    }
  }
  const vf d = vload_half(reinterpret_cast<const uint16_t*>(header));
  const KMinima<kind> minima(header);
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    const vf value = minima.subtract(x[m], d * vtofloat(total[m]));
    vstore(sums[m], vfma(vset(x[m].scale), value, vload(sums[m])));
  }
}

// The same of a chunk of `tiles` tiles, with floats as scales of its tiles.
template <Format kFormat, int kTokens>
inline void group_floats(const uint8_t* header, int tiles, const ActivationGroup* x, const GroupAhead& ahead,
                         float (*sums)[kBandRows]) {
  using T = GroupTraits<kFormat>;
  static_assert(T::shift < 0, "offsets of codes are for group_integers");
  constexpr Scales kind = T::s.scales;
  constexpr int bytes = tile_bytes(T::s);
  const uint8_t* tile = header + header_bytes(kind, tiles);
  vf total[kTokens];
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) total[m] = vzero();
#pragma GCC unroll 1
  for (int t = 0; t < tiles; ++t, tile += bytes) {
    ahead.template ask<bytes>(tile);
    GroupSums<kTokens> products;
    products.clear();
    products.template add_tile<kFormat>(tile, x, 32 * t);
    const vf scale = tile_scale<kind>(header, t, 0, 0);
    const vf least = kind == Scales::half_min ? tile_min<kind>(header, tiles, t, 0, 0) : vzero();
#pragma GCC unroll 12
    for (int m = 0; m < kTokens; ++m) {
      const vi sum = products.total(m);
      const vi more = _mm512_and_si512(vseti(x[m].half_more[t]), vseti(0xffff));
      const vi product = vaddi(_mm512_sllv_epi32(sum, vseti(x[m].shifts[t])), _mm512_sllv_epi32(sum, more));
      total[m] = vfma(vtofloat(product), scale, total[m]);
      if constexpr (kind == Scales::half_min) total[m] = vfma(least, vset(x[m].sums[t]), total[m]);
    }
  }
  const KMinima<kind> minima(header);
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m)
    vstore(sums[m], vfma(vset(x[m].scale), minima.subtract(x[m], total[m]), vload(sums[m])));
}

// Band `band` for tokens [first, first + kTokens).
template <Format kFormat, int kTokens>
void group_tokens(const LinearCall& call, int64_t band, int64_t first, GroupAhead& ahead) {
  using T = GroupTraits<kFormat>;
  const int64_t all = call.columns / kTileColumns, row = band * kBandRows;
  alignas(64) float sums[kTokens][kBandRows];
  const vf bias = call.bias ? load_rows(call.bias, row, call.rows) : vzero();
  float* const y = call.y + first * call.y_stride;
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    vstore(sums[m], bias);
    // A line of the result is written once in a while and rarely in a cache: ask for it early.
    if (kTokens >= 4) __builtin_prefetch(y + m * call.y_stride + row, 1);
  }
  const uint8_t* header = call.weight + band * call.band_stride;
  const ActivationGroup* x = reinterpret_cast<const ActivationGroup*>(call.x) + first;
  for (int64_t start = 0; start < all; start += kGroupTiles, x += call.groups / kGroupBytes) {
    const int tiles = static_cast<int>(all - start < kGroupTiles ? all - start : kGroupTiles);
    ahead.template ask<header_bytes(T::s.scales, kGroupTiles)>(header);
    ahead.ask_soon();
    if constexpr (T::path == GroupPath::tiles) {
      group_floats<kFormat, kTokens>(header, tiles, x, ahead, sums);
    } else {
      group_integers<kFormat, kTokens>(header, x, ahead, sums);
    }
    header += header_bytes(T::s.scales, tiles) + tiles * tile_bytes(T::s);
  }
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) store_rows(y + m * call.y_stride, row, call.rows, vload(sums[m]));
}

// The same for a number of tokens that is not known yet, 1 to kMost.
template <Format kFormat, int kMost = kGroupMost>
inline void group_count(int64_t tokens, const LinearCall& call, int64_t band, int64_t first,
                        GroupAhead& ahead) {
  if constexpr (kMost > 1) {
    if (tokens < kMost) return group_count<kFormat, kMost - 1>(tokens, call, band, first, ahead);
  }
  group_tokens<kFormat, kMost>(call, band, first, ahead);
}

template <Format kFormat>
void group(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last) {
  // Parts of about the same size. Band by band, so that a band comes from memory once and from L1 or L2 for
  // the other parts.
  const int64_t tokens = last - first, parts = (tokens + kGroupMost - 1) / kGroupMost;
  const int64_t chunks = (call.columns + kGroupColumns - 1) / kGroupColumns * (end - begin) * parts;
  GroupAhead ahead{};
  ahead.stop = call.weight + end * call.band_stride;
  ahead.jump = call.after ? call.after - ahead.stop : 0;
  ahead.soon = call.soon;
  ahead.soon_end = call.soon + call.soon_bytes;
  ahead.share = (call.soon_bytes / 64 + chunks - 1) / chunks;
  for (int64_t band = begin; band < end; ++band) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = first + part * tokens / parts, to = first + (part + 1) * tokens / parts;
      ahead.first = part == 0;
      group_count<kFormat>(to - from, call, band, from, ahead);
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
