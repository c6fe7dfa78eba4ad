// Attention of a tile of queries over cached keys and values, with an online softmax (Milakov and Gimelshein
// 2018; Dao et al. 2022), for the vectors of the simd/ header included before.
#pragma once

#include "kernels/attention/stream.inl.hpp"

namespace ktc::kernels {
namespace {

void cap_scores(float* scores, int columns, float softcap) {
  const vf cap = vset(softcap), inverse = vset(1.0f / softcap);
  for (int j = 0; j < columns; j += kWidth) vstore(scores + j, cap * vtanh(vload(scores + j) * inverse));
}

// What both ways of attending keep of a tile's rows.
struct TileState {
  int rows;
  float *queries, *scores, *highest, *total, *sums, *free;
};

TileState begin_tile(const AttentionTile& t) {
  TileState s{};
  s.rows = t.heads * t.tokens;
  s.queries = t.scratch;
  s.scores = s.queries + s.rows * t.depth;
  s.free = s.scores + s.rows * kAttentionTile;
  s.sums = t.sums;
  s.highest = t.highest;
  s.total = t.total;
  if (t.out) {
    s.sums = s.free;
    s.highest = s.sums + s.rows * t.value_depth;
    s.total = s.highest + s.rows;
    s.free += (s.rows * (t.value_depth + 2) + 15) / 16 * 16;
  }
  const vf scale = vset(t.scale);
  for (int r = 0; r < s.rows; ++r) {
    const float* q = t.q + r / t.tokens * t.q_head + r % t.tokens * t.q_token;
    for (int d = 0; d < t.depth; d += kWidth) vstore(s.queries + r * t.depth + d, vload(q + d) * scale);
    for (int d = 0; d < t.value_depth; d += kWidth) vstore(s.sums + r * t.value_depth + d, vzero());
    s.highest[r] = kNone;
    s.total[r] = 0;
  }
  return s;
}

// Turns the scores of positions [start, start + count) into weights, for rows [from, to); `columns` is count
// rounded up.
void weigh(const AttentionTile& t, const TileState& s, int from, int to, int64_t start, int count,
           int columns) {
  for (int r = from; r < to; ++r) {
    float* row = s.scores + r * kAttentionTile;
    if (t.softcap > 0) cap_scores(row, columns, t.softcap);
    // Visible columns of this row: [first, last).
    const int64_t position = t.position + r % t.tokens;
    int64_t first = t.window > 0 ? position - t.window + 1 - start : 0, last = position + 1 - start;
    first = first < 0 ? 0 : first > columns ? columns : first;
    last = last < 0 ? 0 : last > count ? count : last;
    for (int64_t j = 0; j < first; ++j) row[j] = kNone;
    for (int64_t j = last; j < columns; ++j) row[j] = kNone;
    update_row(row, columns, s.highest + r, s.total + r, s.sums + r * t.value_depth, t.value_depth);
  }
}

void finish_tile(const AttentionTile& t, const TileState& s) {
  if (!t.out) return;
  for (int r = 0; r < s.rows; ++r) finish_row(t, r, s.highest[r], s.total[r], s.sums + r * t.value_depth);
}

void attend(const AttentionTile& t) {
  const TileState s = begin_tile(t);
  float* keys = s.free;
  float* values = keys + kAttentionTile * t.depth;
  const CachedRows key_rows{t.keys, t.key_block, t.key_type, t.depth};
  const CachedRows value_rows{t.values, t.value_block, t.value_type, t.value_depth};
  const Pages pages{t.table, t.block_size, t.end};
  for (int64_t start = t.begin; start < t.end; start += kAttentionTile) {
    const int count = static_cast<int>(t.end - start < kAttentionTile ? t.end - start : kAttentionTile);
    const int columns = (count + kWidth - 1) / kWidth * kWidth;
    read_columns(key_rows, pages, start, count, keys);
    read_rows(value_rows, pages, start, count, values);
    multiply<false>(s.queries, t.depth, keys, kAttentionTile, t.depth, s.scores, kAttentionTile, s.rows,
                    columns);
    weigh(t, s, 0, s.rows, start, count, columns);
    multiply<true>(s.scores, kAttentionTile, values, t.value_depth, count, s.sums, t.value_depth, s.rows,
                   t.value_depth);
  }
  finish_tile(t, s);
}

void stream(const AttentionTile& t) {
  const TileState s = begin_tile(t);
  const CachedRows key_rows{t.keys, t.key_block, t.key_type, t.depth};
  const CachedRows value_rows{t.values, t.value_block, t.value_type, t.value_depth};
  const Pages pages{t.table, t.block_size, t.limit};
  const int key_lines = static_cast<int>((element_bytes(t.key_type, t.depth) + 63) / 64);
  const int value_lines = static_cast<int>((element_bytes(t.value_type, t.value_depth) + 63) / 64);
  const StreamRows score = kScore[static_cast<int>(t.key_type)], add = kAdd[static_cast<int>(t.value_type)];
  const int group = s.rows / t.kv_heads;  // rows of one key head
  const auto until = [](int64_t start, int64_t end) {
    const int64_t left = end - start;
    return static_cast<int>(left < 0 ? 0 : left < kAttentionTile ? left : kAttentionTile);
  };
  // Keys of this tile and of the next one, which may be another part's.
  Places places[2], values;
  values.scales = s.free + kAttentionTile * (t.depth / kCacheGroup);
  places[0].scales = places[1].scales = s.free;
  locate(key_rows, pages, t.begin, until(t.begin, t.end), kAttentionTile, places[0]);
  fetch_scales(key_rows, pages, t.begin, until(t.begin, t.end), 0);
  for (int64_t start = t.begin, tile = 0; start < t.end; start += kAttentionTile, ++tile) {
    const int count = until(start, t.end), columns = (count + 15) / 16 * 16;
    const int64_t next = start + kAttentionTile;
    const int next_count = until(next, t.limit);
    const Places &keys = places[tile % 2], &later = places[1 - tile % 2];
    locate(value_rows, pages, start, count, count, values);
    if (next_count > 0) locate(key_rows, pages, next, next_count, kAttentionTile, places[1 - tile % 2]);
    for (int h = 0; h < t.kv_heads; ++h) {
      const int row = h * group;
      const int64_t key_shift = h * t.key_slab, value_shift = h * t.value_slab;
      float* scores = s.scores + row * kAttentionTile;
      fetch_scales(value_rows, pages, start, count, value_shift);
      read_scales(key_rows, pages, start, count, columns, places[tile % 2], key_shift);
      score(s.queries + row * t.depth, group, t.depth, keys, key_shift, columns,
            {values.row, value_shift, count, value_lines}, scores);
      weigh(t, s, row, row + group, start, count, columns);
      Ahead ahead{keys.row, key_shift + t.key_slab, count, key_lines};
      if (h + 1 == t.kv_heads) ahead = {later.row, 0, next_count, key_lines};
      fetch_scales(key_rows, pages, h + 1 < t.kv_heads ? start : next, ahead.count,
                   h + 1 < t.kv_heads ? ahead.shift : 0);
      read_scales(value_rows, pages, start, count, count, values, value_shift);
      add(scores, group, t.value_depth, values, value_shift, count, ahead, s.sums + row * t.value_depth);
    }
  }
  finish_tile(t, s);
}

void combine(const AttentionParts& p) {
  float highest = p.sink ? *p.sink : kNone;
  for (int64_t i = 0; i < p.parts; ++i) {
    const float other = p.highest[i * p.stride];
    highest = other > highest ? other : highest;
  }
  const vf shift = vset(highest);
  float factor[kWidth], total = 0;
  if (p.sink) {
    vstore(factor, vexp(vset(*p.sink) - shift));
    total = factor[0];
  }
  for (int d = 0; d < p.value_depth; d += kWidth) vstore(p.out + d, vzero());
  for (int64_t i = 0; i < p.parts; ++i) {
    const vf weight = vexp(vset(p.highest[i * p.stride]) - shift);
    vstore(factor, weight);
    total += factor[0] * p.total[i * p.stride];
    const float* sums = p.sums + i * p.stride;
    for (int d = 0; d < p.value_depth; d += kWidth)
      vstore(p.out + d, vfma(weight, vload(sums + d), vload(p.out + d)));
  }
  const vf inverse = vset(1.0f / total);
  for (int d = 0; d < p.value_depth; d += kWidth) vstore(p.out + d, vload(p.out + d) * inverse);
}

}  // namespace
}  // namespace ktc::kernels
