// Attention of a tile of queries over cached keys and values, with an online softmax (Milakov and Gimelshein
// 2018; Dao et al. 2022), for the vectors of the simd/ header included before.
#pragma once

#include "kernels/attention/tile.inl.hpp"

namespace ktc::kernels {
namespace {

void cap_scores(float* scores, int columns, float softcap) {
  const vf cap = vset(softcap), inverse = vset(1.0f / softcap);
  for (int j = 0; j < columns; j += kWidth) vstore(scores + j, cap * vtanh(vload(scores + j) * inverse));
}

void finish_row(const AttentionTile& t, int row, float highest, float total, const float* sums) {
  float factor = 1.0f / total;
  if (t.sinks) {
    const float sink = t.sinks[row / t.tokens];
    const float now = sink > highest ? sink : highest;
    float shifted[kWidth], sinking[kWidth];
    vstore(shifted, vexp(vset(highest - now)));
    vstore(sinking, vexp(vset(sink - now)));
    factor = shifted[0] / (total * shifted[0] + sinking[0]);
  }
  float* out = t.out + row % t.tokens * t.out_token + row / t.tokens * t.value_depth;
  for (int d = 0; d < t.value_depth; d += kWidth) vstore(out + d, vload(sums + d) * vset(factor));
}

void attend(const AttentionTile& t) {
  const int rows = t.heads * t.tokens;
  float* queries = t.scratch;
  float* scores = queries + rows * t.depth;
  float* keys = scores + rows * kAttentionTile;
  float* values = keys + kAttentionTile * t.depth;
  float* own = values + kAttentionTile * t.value_depth;
  float* sums = t.out ? own : t.sums;
  float* highest = t.out ? own + rows * t.value_depth : t.highest;
  float* total = t.out ? highest + rows : t.total;
  const CachedRows key_rows{t.keys, t.key_block, t.key_type, t.depth};
  const CachedRows value_rows{t.values, t.value_block, t.value_type, t.value_depth};
  const Pages pages{t.table, t.block_size, t.end};
  const vf scale = vset(t.scale);
  for (int r = 0; r < rows; ++r) {
    const float* q = t.q + r / t.tokens * t.q_head + r % t.tokens * t.q_token;
    for (int d = 0; d < t.depth; d += kWidth) vstore(queries + r * t.depth + d, vload(q + d) * scale);
    for (int d = 0; d < t.value_depth; d += kWidth) vstore(sums + r * t.value_depth + d, vzero());
    highest[r] = kNone;
    total[r] = 0;
  }
  for (int64_t start = t.begin; start < t.end; start += kAttentionTile) {
    const int count = static_cast<int>(t.end - start < kAttentionTile ? t.end - start : kAttentionTile);
    const int columns = (count + kWidth - 1) / kWidth * kWidth;
    read_columns(key_rows, pages, start, count, keys);
    read_rows(value_rows, pages, start, count, values);
    multiply<false>(queries, t.depth, keys, kAttentionTile, t.depth, scores, kAttentionTile, rows, columns);
    for (int r = 0; r < rows; ++r) {
      float* row = scores + r * kAttentionTile;
      if (t.softcap > 0) cap_scores(row, columns, t.softcap);
      // Visible columns of this row: [first, last).
      const int64_t position = t.position + r % t.tokens;
      int64_t first = t.window > 0 ? position - t.window + 1 - start : 0, last = position + 1 - start;
      first = first < 0 ? 0 : first > columns ? columns : first;
      last = last < 0 ? 0 : last > count ? count : last;
      for (int64_t j = 0; j < first; ++j) row[j] = kNone;
      for (int64_t j = last; j < columns; ++j) row[j] = kNone;
      update_row(row, columns, highest + r, total + r, sums + r * t.value_depth, t.value_depth);
    }
    multiply<true>(scores, kAttentionTile, values, t.value_depth, count, sums, t.value_depth, rows,
                   t.value_depth);
  }
  if (!t.out) return;
  for (int r = 0; r < rows; ++r) finish_row(t, r, highest[r], total[r], sums + r * t.value_depth);
}

}  // namespace
}  // namespace ktc::kernels
