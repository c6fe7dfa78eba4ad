// Causal attention over a paged cache on rounded operands; see rounded.hpp.
#pragma once

#include "kernels/attention/rounded.inl.hpp"

namespace ktc::kernels {
namespace {

// Where a rounded tile lies: [kAttentionTile] steps, keys, values; the rest is left out.
inline RoundedSpace rounded_space(float* tile, int64_t words) {
  RoundedSpace s{};
  s.steps = tile;
  s.keys = reinterpret_cast<int32_t*>(tile + kAttentionTile);
  s.values = tile + kAttentionTile + words / 2 * kAttentionTile;
  return s;
}

// Rounds positions [start, start + count), with `s.rows` and `s.codes` as spare memory.
template <bool kBfloats>
void round_positions(const CachedRows& keys, const CachedRows& values, const Pages& pages, int64_t start,
                     int count, const RoundedSpace& s) {
  const int columns = (count + 15) / 16 * 16;
  read_rows(keys, pages, start, count, s.rows);
  round_keys(s, count, keys.depth, padded_words(keys.depth));
  float* rows = kBfloats ? s.rows : s.values;
  read_rows(values, pages, start, count, rows);
  round_values<kBfloats>(rows, values.depth, count, values.depth, columns, s.values);
}

template <bool kBfloats>
void round_tile(const RoundedTile& t) {
  const int64_t words = padded_words(t.keys.depth);
  Places16 places{t.scratch};
  RoundedSpace s = rounded_space(t.out, words);
  s.rows = places.take(kAttentionTile * (words > t.values.depth ? words : t.values.depth));
  s.codes = places.take<int16_t>(kAttentionTile * words / 2);
  round_positions<kBfloats>(t.keys, t.values, t.pages, t.start, t.count, s);
}

// Codes of the queries, row by row: token r / heads, head r % heads, so that the rows which see a position
// are neighbours.
inline void round_queries(const AttentionTile& t, const RoundedRows& rows, int64_t count, float* spare) {
  const vf scale = vset(t.softcap > 0 ? t.scale : t.scale * kLog2E);
  for (int64_t r = 0; r < count; r += kAttentionTile) {
    const int64_t some = count - r < kAttentionTile ? count - r : kAttentionTile;
    for (int64_t i = 0; i < some; ++i) {
      const float* q = t.q + (r + i) % t.heads * t.q_head + (r + i) / t.heads * t.q_token;
      for (int d = 0; d < t.depth; d += kWidth) vstore(spare + i * t.depth + d, vload(q + d) * scale);
    }
    round_rows(spare, t.depth, some, t.depth, reinterpret_cast<int16_t*>(rows.queries) + r * rows.words,
               rows.steps + r);
  }
}

// A group of rows after another against the columns of a tile that any row of the group sees.
template <bool kBfloats>
void attend_visible(const AttentionTile& t, const RoundedRows& rows, const RoundedKeys& tile, int64_t start,
                    int64_t count, const RoundedSpace& s) {
  const auto visible = [&](int64_t r, int& first, int& last) {
    const int64_t position = t.position + r / t.heads, seen = position + 1 - start;
    const int64_t oldest = t.window > 0 ? position - t.window + 1 - start : 0;
    last = static_cast<int>(seen < 0 ? 0 : seen > tile.count ? tile.count : seen);
    first = static_cast<int>(oldest < 0 ? 0 : oldest > last ? last : oldest);
  };
  for (int64_t r = 0; r < count; r += kRoundedGroup) {
    const int64_t end = count - r < kRoundedGroup ? count : r + kRoundedGroup;
    int first, unused;
    RoundedKeys seen = tile;
    visible(r, first, unused);
    visible(end - 1, unused, seen.count);
    if (first >= seen.count) continue;
    seen.columns = (seen.count + 15) / 16 * 16;
    attend_tile<kBfloats>(rows, seen, r, end, s.scores, s.weights, visible);
  }
}

template <bool kBfloats>
void attend_rounded(const AttentionTile& t) {
  const int64_t count = int64_t{t.heads} * t.tokens;
  Places16 places{t.scratch};
  RoundedRows rows = take_rows(places, count, t.depth, t.value_depth);
  const RoundedSpace s = take_space(places, t.depth, t.value_depth);
  rows.softcap = t.softcap;
  clear_rows(rows, count);
  round_queries(t, rows, count, s.rows);
  const CachedRows key_rows{t.keys, t.key_block, t.key_type, t.depth};
  const CachedRows value_rows{t.values, t.value_block, t.value_type, t.value_depth};
  const Pages pages{t.table, t.block_size, t.end};
  const int64_t tile_floats = rounded_tile(t.depth, t.value_depth, kBfloats);
  float* rounded = t.rounded;
  for (int64_t start = t.begin; start < t.end; start += kAttentionTile) {
    const int64_t left = t.end - start;
    const int some = static_cast<int>(left < kAttentionTile ? left : kAttentionTile);
    const RoundedSpace at = rounded ? rounded_space(rounded, rows.words) : s;
    if (rounded)
      rounded += tile_floats;
    else
      round_positions<kBfloats>(key_rows, value_rows, pages, start, some, s);
    attend_visible<kBfloats>(t, rows, {at.keys, at.steps, at.values, some, 0}, start, count, s);
  }
  for (int64_t r = 0; r < count; ++r) {
    const float highest = natural_highest(rows.highest[r]), total = vsum(vload(rows.totals + 16 * r));
    const int64_t row = r % t.heads * t.tokens + r / t.heads;
    const float* sums = rows.sums + r * t.value_depth;
    if (t.out) {
      finish_row(t, static_cast<int>(row), highest, total, sums);
    } else {
      t.highest[row] = highest;
      t.total[row] = total;
      for (int d = 0; d < t.value_depth; d += kWidth)
        vstore(t.sums + row * t.value_depth + d, vload(sums + d));
    }
  }
}

}  // namespace
}  // namespace ktc::kernels
