// Latent attention of a tile of queries (DeepSeek-V2, 2024), with an online softmax, for the vectors of the
// simd/ header included before: on latents with absorbed queries, or on keys and values expanded from them.
#pragma once

#include "kernels/attention/tile.inl.hpp"
#include "kernels/latent/tables.hpp"
#include "kernels/latent/unpack.inl.hpp"

namespace ktc::kernels {
namespace {

inline void copy_scaled(const float* from, int n, vf scale, float* to) {
  for (int i = 0; i < n; i += kWidth) vstore(to + i, vload(from + i) * scale);
}

// Hides the columns of a row of scores that come after `position`; `columns` is count rounded up to kWidth.
inline void hide_later(float* row, int64_t position, int64_t start, int count, int columns) {
  int64_t last = position + 1 - start;
  last = last < 0 ? 0 : last > count ? count : last;
  for (int64_t j = last; j < columns; ++j) row[j] = kNone;
}

void attend_latent(const LatentTile& t) {
  const int rows = t.heads * t.tokens, latent = t.latents.depth, rope = t.rotated.depth;
  const int depth = latent + rope;
  float* queries = t.scratch;
  float* scores = queries + rows * depth;
  float* sums = scores + rows * kAttentionTile;
  float* keys = sums + rows * latent;
  float* values = keys + kAttentionTile * depth;
  float* highest = values + kAttentionTile * latent;
  float* total = highest + rows;
  const vf scale = vset(t.scale);
  for (int r = 0; r < rows; ++r) {
    const int64_t token = r / t.heads, head = r % t.heads;
    float* query = queries + r * depth;
    copy_scaled(t.q_latent.data + head * t.q_latent.head + token * t.q_latent.token, latent, scale, query);
    copy_scaled(t.q_rope.data + head * t.q_rope.head + token * t.q_rope.token, rope, scale, query + latent);
    for (int d = 0; d < latent; d += kWidth) vstore(sums + r * latent + d, vzero());
    highest[r] = kNone;
    total[r] = 0;
  }
  for (int64_t start = t.begin; start < t.pages.end; start += kAttentionTile) {
    const int64_t left = t.pages.end - start;
    const int count = static_cast<int>(left < kAttentionTile ? left : kAttentionTile);
    const int columns = (count + kWidth - 1) / kWidth * kWidth;
    read_columns(t.latents, t.pages, start, count, keys);
    read_columns(t.rotated, t.pages, start, count, keys + latent * kAttentionTile);
    read_rows(t.latents, t.pages, start, count, values);
    multiply<false>(queries, depth, keys, kAttentionTile, depth, scores, kAttentionTile, rows, columns);
    for (int r = 0; r < rows; ++r) {
      float* row = scores + r * kAttentionTile;
      hide_later(row, t.position + r / t.heads, start, count, columns);
      update_row(row, columns, highest + r, total + r, sums + r * latent, latent);
    }
    multiply<true>(scores, kAttentionTile, values, latent, count, sums, latent, rows, latent);
  }
  for (int r = 0; r < rows; ++r) {
    const int64_t token = r / t.heads, head = r % t.heads;
    float* out = t.sums + token * t.sums_token + head * latent;
    for (int d = 0; d < latent; d += kWidth) vstore(out + d, vload(sums + r * latent + d));
    float* stats = t.stats + token * t.stats_token + 2 * head;
    stats[0] = highest[r];
    stats[1] = total[r];
  }
}

void attend_expanded(const ExpandedTile& t) {
  const int latent = t.latents.depth, depth = t.nope + t.rotated.depth, width = t.value_depth;
  float* queries = t.scratch;
  float* sums = queries + int64_t{t.tokens} * depth;
  float* latent_columns = sums + int64_t{t.tokens} * width;
  float* latent_rows = latent_columns + kAttentionTile * latent;
  float* keys = latent_rows + kAttentionTile * latent;
  float* values = keys + kAttentionTile * depth;
  float* scores = values + kAttentionTile * width;
  float* highest = scores + kAttentionTile * kExpandedRows;
  float* total = highest + t.tokens;
  const vf scale = vset(t.scale);
  for (int64_t r = 0; r < t.tokens; ++r) {
    copy_scaled(t.q_nope + r * t.q_nope_token, t.nope, scale, queries + r * depth);
    copy_scaled(t.q_rope + r * t.q_rope_token, t.rotated.depth, scale, queries + r * depth + t.nope);
    for (int d = 0; d < width; d += kWidth) vstore(sums + r * width + d, vzero());
    highest[r] = kNone;
    total[r] = 0;
  }
  for (int64_t start = 0; start < t.pages.end; start += kAttentionTile) {
    const int64_t left = t.pages.end - start;
    const int count = static_cast<int>(left < kAttentionTile ? left : kAttentionTile);
    const int columns = (count + kWidth - 1) / kWidth * kWidth;
    read_columns(t.latents, t.pages, start, count, latent_columns);
    read_rows(t.latents, t.pages, start, count, latent_rows);
    read_columns(t.rotated, t.pages, start, count, keys + t.nope * kAttentionTile);
    multiply<false>(t.keys, latent, latent_columns, kAttentionTile, latent, keys, kAttentionTile, t.nope,
                    columns);
    multiply<false>(latent_rows, latent, t.values, width, latent, values, width, count, width);
    // Earlier rows see nothing of this tile.
    int64_t r = start - t.position;
    for (r = r > 0 ? r : 0; r < t.tokens; r += kExpandedRows) {
      const int64_t rest = t.tokens - r;
      const int rows = static_cast<int>(rest < kExpandedRows ? rest : kExpandedRows);
      multiply<false>(queries + r * depth, depth, keys, kAttentionTile, depth, scores, kAttentionTile, rows,
                      columns);
      for (int i = 0; i < rows; ++i) {
        float* row = scores + i * kAttentionTile;
        hide_later(row, t.position + r + i, start, count, columns);
        update_row(row, columns, highest + r + i, total + r + i, sums + (r + i) * width, width);
      }
      multiply<true>(scores, kAttentionTile, values, width, count, sums + r * width, width, rows, width);
    }
  }
  for (int64_t r = 0; r < t.tokens; ++r) {
    copy_scaled(sums + r * width, width, vset(1.0f / total[r]), t.out + r * t.out_token);
  }
}

}  // namespace
}  // namespace ktc::kernels
