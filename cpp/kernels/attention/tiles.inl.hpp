// Keys and values as tiles, their products with tiles of queries and of weights, and the online softmax
// between them, in powers of two; see tiles.hpp.
//
// Tile registers 0 to 3 hold sums of 2 x 2 tiles, 4 and 5 two tiles of queries or weights, 6 and 7 two of
// keys or values. Each is loaded anew as soon as it has been used for the last time.
#pragma once

#include "isa/tiles.inl.hpp"
#include "kernels/attention/rounded.inl.hpp"
#include "kernels/attention/tiles.hpp"

namespace ktc::kernels {
namespace {

using isa::load_configuration;
using isa::TileConfiguration;

constexpr int kTile = static_cast<int>(kAttentionTileBytes);
constexpr int kTileFloats = kTile / 4;
constexpr int64_t kScoreStride = kTiledChunk + 16;   // floats: rows begin in different sets of the cache
constexpr int64_t kWeightStride = kTiledChunk + 32;  // bf16

// GCC does not know that loads of tiles read memory.
inline void stored() {
  asm volatile("" : : : "memory");
}

// 32 floats as bf16, and as bf16 what these leave.
inline void split_bfloats(vf first, vf second, __m512i& high, __m512i& low) {
  high = (__m512i)_mm512_cvtne2ps_pbh(second, first);
  const auto wide = [](__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  };
  const vf first_left = first - wide(_mm512_castsi512_si256(high));
  const vf second_left = second - wide(_mm512_extracti64x4_epi64(high, 1));
  low = (__m512i)_mm512_cvtne2ps_pbh(second_left, first_left);
}

// Elements [d, d + 32) of a row of `depth`, a multiple of 16.
inline void load_32(const float* row, int d, int depth, vf& first, vf& second) {
  first = vload(row + d);
  second = d + 16 < depth ? vload(row + d + 16) : vzero();
}

// [depth / 32][high, low][2 tiles of 16 positions][pairs of elements][16 positions][2].
void place_keys(const TiledPlace& p) {
  const int depth = p.rows.depth;
  read_rows(p.rows, p.pages, p.start, p.count, p.scratch);
  uint8_t* out = p.out;
  for (int d = 0; d < depth; d += 32) {
    for (int tile = 0; tile < 2; ++tile) {
      vf high[kWidth], low[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        const int row = kWidth * tile + i;
        vf first = vzero(), second = vzero();
        if (row < p.count) load_32(p.scratch + int64_t{row} * depth, d, depth, first, second);
        __m512i a, b;
        split_bfloats(first, second, a, b);
        high[i] = _mm512_castsi512_ps(a);
        low[i] = _mm512_castsi512_ps(b);
      }
      const auto turn = [](vf(&part)[kWidth], uint8_t* to) {
        vtranspose(part);
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) vstore(reinterpret_cast<float*>(to + 64 * i), part[i]);
      };
      turn(high, out + tile * kTile);
      if (p.split) turn(low, out + (2 + tile) * kTile);
    }
    out += (p.split ? 4 : 2) * kTile;
  }
}

// [value_depth / 16, even][pairs of positions][16 elements][2].
void place_values(const TiledPlace& p) {
  const int depth = p.rows.depth;
  read_rows(p.rows, p.pages, p.start, p.count, p.scratch);
  int d = 0;
  for (; d < depth; d += 16)
    pair_rows(p.scratch + d, depth, p.count, 16, kTiledPositions,
              reinterpret_cast<uint32_t*>(p.out + d / 16 * kTile));
  if (d % 32 == 0) return;
  for (int i = 0; i < kTile; i += 64) _mm512_storeu_si512(p.out + d / 16 * kTile + i, _mm512_setzero_si512());
}

// Rows of queries, kTiledRows a block.
struct TiledRows {
  uint8_t* queries;  // [blocks][depth / 32][high, low][2 tiles of 16 rows][16][32]
  // [rows], base 2; [rows][16], lanes; [blocks][tiles of value_depth][2 tiles of 16 rows][16][16]
  float *highest, *totals, *sums;
  // Of a block: [kTiledRows][kScoreStride] and [kTiledRows][kWeightStride].
  float* scores;
  uint16_t* weights;
  float* row;
  int count, steps, value_tiles;
  float softcap;

  float* sums_of(int64_t r) const {
    return sums + r / kTiledRows * value_tiles * 2 * kTileFloats + r % kTiledRows * 16;
  }
};

inline TiledRows take_tiled_rows(const AttentionTile& t) {
  TiledRows rows{};
  rows.count = t.heads * t.tokens;
  rows.steps = (t.depth + 31) / 32;
  rows.value_tiles = (t.value_depth + 31) / 32 * 2;
  rows.softcap = t.softcap;
  const int64_t padded = (rows.count + kTiledRows - 1) / kTiledRows * kTiledRows;
  Places16 places{t.scratch};
  rows.queries = places.take<uint8_t>(padded * rows.steps * 32);
  rows.highest = places.take(padded);
  rows.totals = places.take(padded * 16);
  rows.sums = places.take(padded * rows.value_tiles * 16);
  rows.scores = places.take(kTiledRows * kScoreStride);
  rows.weights = places.take<uint16_t>(kTiledRows * kWeightStride / 2);
  rows.row = places.take(rows.value_tiles * 16);
  for (int64_t r = 0; r < padded; ++r) {
    rows.highest[r] = -kLargest;
    vstore(rows.totals + 16 * r, vzero());
  }
  for (int64_t i = 0; i < padded * rows.value_tiles; ++i) vstore(rows.sums + 16 * i, vzero());
  return rows;
}

inline void place_queries(const AttentionTile& t, const TiledRows& rows) {
  const vf scale = vset(t.softcap > 0 ? t.scale : t.scale * kLog2E);
  const int padded = (rows.count + kTiledRows - 1) / kTiledRows * kTiledRows;
  for (int r = 0; r < padded; ++r) {
    const float* q = r < rows.count ? t.q + r / t.tokens * t.q_head + r % t.tokens * t.q_token : nullptr;
    uint8_t* to = rows.queries + int64_t{r / kTiledRows} * rows.steps * 4 * kTile +
                  r % kTiledRows / 16 * kTile + r % 16 * 64;
    for (int step = 0; step < rows.steps; ++step, to += 4 * kTile) {
      vf first = vzero(), second = vzero();
      if (q) load_32(q, 32 * step, t.depth, first, second);
      __m512i high, low;
      split_bfloats(first * scale, second * scale, high, low);
      _mm512_storeu_si512(to, high);
      _mm512_storeu_si512(to + 2 * kTile, low);
    }
  }
}

// Scores of a block of queries and the positions of one group, whose first operands (low parts of queries,
// high parts of keys) are in their tiles already; leaves those of `next` keys there.
template <bool kSplit>
inline void score_group(const uint8_t* queries, const uint8_t* keys, const uint8_t* next, int steps,
                        float* scores) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const uint8_t* q = queries;
  for (int step = 1; step <= steps; ++step) {
    const uint8_t* after = step < steps ? q + 4 * kTile : queries;
    const uint8_t* after_keys = step < steps ? keys + (kSplit ? 4 : 2) * kTile : next;
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(4, q, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(5, q + kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kSplit) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(6, keys + 2 * kTile, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(7, keys + 3 * kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
    }
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(4, after + 2 * kTile, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(6, after_keys, 64);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(5, after + 3 * kTile, 64);
    _tile_loadd(7, after_keys + kTile, 64);
    q = after;
    keys = after_keys;
  }
  _tile_stored(0, scores, 4 * kScoreStride);
  _tile_stored(1, scores + 16, 4 * kScoreStride);
  _tile_stored(2, scores + 16 * kScoreStride, 4 * kScoreStride);
  _tile_stored(3, scores + 16 * kScoreStride + 16, 4 * kScoreStride);
}

template <bool kSplit>
void score_block(const TiledRows& rows, int block, const uint8_t* keys, int first, int last) {
  const uint8_t* queries = rows.queries + int64_t{block} * rows.steps * 4 * kTile;
  const int64_t group = int64_t{rows.steps} * (kSplit ? 4 : 2) * kTile;
  const uint8_t* now = keys + first * group;
  _tile_loadd(4, queries + 2 * kTile, 64);
  _tile_loadd(6, now, 64);
  _tile_loadd(5, queries + 3 * kTile, 64);
  _tile_loadd(7, now + kTile, 64);
  for (int g = first; g < last; ++g) {
    const uint8_t* next = keys + (g + 1 < last ? g + 1 : first) * group;
    score_group<kSplit>(queries, now, next, rows.steps, rows.scores + 32 * g);
    now = next;
  }
}

// sums += weights * values for a block of rows.
void add_values(const TiledRows& rows, int block, const uint8_t* values, int first, int last) {
  const int64_t group = int64_t{rows.value_tiles} * kTile;
  float* sums = rows.sums + int64_t{block} * rows.value_tiles * 2 * kTileFloats;
  const uint16_t *low = rows.weights, *high = rows.weights + 16 * kWeightStride;
  for (int tile = 0; tile < rows.value_tiles; tile += 2, sums += 4 * kTileFloats) {
    const uint8_t* value = values + tile * kTile + first * group;
    _tile_loadd(4, low + 32 * first, 2 * kWeightStride);
    _tile_loadd(6, value, 64);
    _tile_loadd(0, sums, 64);
    _tile_loadd(7, value + kTile, 64);
    _tile_loadd(1, sums + 2 * kTileFloats, 64);
    _tile_loadd(5, high + 32 * first, 2 * kWeightStride);
    _tile_loadd(2, sums + kTileFloats, 64);
    _tile_loadd(3, sums + 3 * kTileFloats, 64);
    for (int g = first; g < last; ++g) {
      const int next = g + 1 < last ? g + 1 : first;
      value = values + tile * kTile + next * group;
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(4, low + 32 * next, 2 * kWeightStride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(6, value, 64);
      _tile_dpbf16ps(3, 5, 7);
      _tile_loadd(5, high + 32 * next, 2 * kWeightStride);
      _tile_loadd(7, value + kTile, 64);
      // The sums of the next tiles, which stores would wait for.
      const uint8_t* ahead = reinterpret_cast<const uint8_t*>(sums + 4 * kTileFloats) + (g - first) * kTile;
#pragma GCC unroll 16
      for (int i = 0; i < kTile; i += 64) __builtin_prefetch(ahead + i, 1, 3);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 2 * kTileFloats, 64);
    _tile_stored(2, sums + kTileFloats, 64);
    _tile_stored(3, sums + 3 * kTileFloats, 64);
  }
}

// Lowers what was summed up to weights relative to a new highest score.
inline void raise_tiled(const TiledRows& rows, int64_t r, float top) {
  const float before = rows.highest[r];
  rows.highest[r] = top;
  if (before == -kLargest) return;  // nothing yet
  const vf factor = vexp2(vset(before - top));
  vstore(rows.totals + 16 * r, vload(rows.totals + 16 * r) * factor);
  float* sums = rows.sums_of(r);
  for (int tile = 0; tile < rows.value_tiles; ++tile, sums += 2 * kTileFloats)
    vstore(sums, vload(sums) * factor);
}

// Scores of row r, whose columns [first, last) of [begin, end) are visible, as weights.
inline void weigh_tiled(const TiledRows& rows, int64_t r, int begin, int end, int first, int last) {
  float* scores = rows.scores + r % kTiledRows * kScoreStride;
  uint16_t* weights = rows.weights + r % kTiledRows * kWeightStride;
  if (rows.softcap > 0) {
    const vf cap = vset(rows.softcap * kLog2E), inverse = vset(1.0f / rows.softcap);
    for (int j = begin; j < end; j += 16) vstore(scores + j, cap * vtanh(vload(scores + j) * inverse));
  }
  if (first > begin || last < end) {
    for (int j = begin; j < end; j += 16) {
      if (j >= first && j + 16 <= last) continue;
      const int from = first - j, to = last - j;
      const uint32_t until = to >= 16 ? 0xffffu : to <= 0 ? 0u : (1u << to) - 1;
      const uint32_t since = from <= 0 ? 0xffffu : from >= 16 ? 0u : 0xffffu << from;
      vstore(scores + j,
             _mm512_mask_blend_ps(static_cast<__mmask16>(until & since), vset(kNone), vload(scores + j)));
    }
  }
  vf best = vload(scores + begin), other = vload(scores + begin + 16);
  for (int j = begin + 32; j < end; j += 32) {
    best = vmax(best, vload(scores + j));
    other = vmax(other, vload(scores + j + 16));
  }
  best = vmax(best, other);
  if (_mm512_cmp_ps_mask(best, vset(rows.highest[r] + kHeadroom), _CMP_GT_OQ))
    raise_tiled(rows, r, vhighest(best));
  const vf shift = vset(rows.highest[r]);
  vf even = vload(rows.totals + 16 * r), odd = vzero();
  for (int j = begin; j < end; j += 32) {
    const vf low = vexp2(vload(scores + j) - shift), high = vexp2(vload(scores + j + 16) - shift);
    even = even + low;
    odd = odd + high;
    _mm512_storeu_si512(weights + j, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
  vstore(rows.totals + 16 * r, even + odd);
}

// Groups [first, last) of a chunk's that any row of a block sees, and the position that its row r has.
struct Seen {
  int first, last;
};
inline Seen seen_by(const AttentionTile& t, const TiledRows& rows, int block, int64_t start, int groups) {
  const int from = block * kTiledRows;
  const int to = from + kTiledRows < rows.count ? from + kTiledRows : rows.count;
  const bool one_head = from / t.tokens == (to - 1) / t.tokens;
  const int64_t lowest = t.position + (one_head ? from % t.tokens : 0);
  const int64_t highest = t.position + (one_head ? (to - 1) % t.tokens : t.tokens - 1);
  const int64_t last = (highest - start) / kTiledPositions + 1;
  const int64_t oldest = t.window > 0 ? lowest - t.window + 1 - start : 0;
  const int64_t first = oldest < 0 ? 0 : oldest / kTiledPositions;
  if (highest < start || first >= groups) return {0, 0};
  return {static_cast<int>(first), static_cast<int>(last < groups ? last : groups)};
}

template <bool kSplit>
void attend_positions(const TiledQueries& call) {
  const AttentionTile& t = call.tile;
  const TiledRows rows = take_tiled_rows(t);
  place_queries(t, rows);
  stored();
  const int64_t key_bytes = tiled_key_bytes(t.depth, kSplit), value_bytes = tiled_value_bytes(t.value_depth);
  const int blocks = (rows.count + kTiledRows - 1) / kTiledRows;
  for (int64_t start = t.begin; start < t.end; start += kTiledChunk) {
    const int64_t left = (t.end - start + kTiledPositions - 1) / kTiledPositions;
    const int groups =
        static_cast<int>(left < kTiledChunk / kTiledPositions ? left : kTiledChunk / kTiledPositions);
    const int64_t group = (start - t.begin) / kTiledPositions;
    for (int block = 0; block < blocks; ++block) {
      const Seen seen = seen_by(t, rows, block, start, groups);
      if (seen.first >= seen.last) continue;
      score_block<kSplit>(rows, block, call.keys + group * key_bytes, seen.first, seen.last);
      const int begin = kTiledPositions * seen.first, end = kTiledPositions * seen.last;
      const int until = block * kTiledRows + kTiledRows;
      for (int r = block * kTiledRows; r < until && r < rows.count; ++r) {
        const int64_t position = t.position + r % t.tokens, behind = position + 1 - start;
        const int64_t oldest = t.window > 0 ? position - t.window + 1 - start : 0;
        const int last = static_cast<int>(behind < 0 ? 0 : behind > end ? end : behind);
        weigh_tiled(rows, r, begin, end,
                    static_cast<int>(oldest < 0      ? 0
                                     : oldest > last ? last
                                                     : oldest),
                    last);
      }
      stored();
      add_values(rows, block, call.values + group * value_bytes, seen.first, seen.last);
    }
  }
  for (int r = 0; r < rows.count; ++r) {
    const float* sums = rows.sums_of(r);
    for (int d = 0; d < t.value_depth; d += 16, sums += 2 * kTileFloats) vstore(rows.row + d, vload(sums));
    finish_row(t, r, natural_highest(rows.highest[r]), vsum(vload(rows.totals + 16 * r)), rows.row);
  }
}

void attend_tiled(const TiledQueries& call) {
  TileConfiguration configuration;
  for (int tile = 0; tile < 8; ++tile) configuration.set(tile, 16);
  load_configuration(configuration);
  call.split ? attend_positions<true>(call) : attend_positions<false>(call);
  _tile_release();
}

}  // namespace
}  // namespace ktc::kernels
