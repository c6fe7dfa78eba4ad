// Attention of a tile of queries over cached keys and values, with an online softmax (Milakov and Gimelshein
// 2018; Dao et al. 2022), for the vectors of the simd/ header included before.
#pragma once

#include "kernels/attention/tables.hpp"

namespace ktc::kernels {
namespace {

constexpr float kNone = -__builtin_inff();

inline const uint8_t* element(const uint8_t* p, CacheType type, int64_t i) {
  return p + (type == CacheType::f32 ? 4 * i : 2 * i);
}
inline vf load_cache(const uint8_t* p, CacheType type) {
  if (type == CacheType::f32) return vload(reinterpret_cast<const float*>(p));
  if (type == CacheType::f16) return vload_half(reinterpret_cast<const uint16_t*>(p));
  return vload_bfloat(reinterpret_cast<const uint16_t*>(p));
}

// n is a multiple of 16.
void write_cache(const float* from, int64_t n, CacheType type, uint8_t* to) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const vf v = vload(from + i);
    if (type == CacheType::f32) vstore(reinterpret_cast<float*>(to) + i, v);
    if (type == CacheType::f16) vstore_half(reinterpret_cast<uint16_t*>(to) + i, v);
    if (type == CacheType::bf16) vstore_bfloat(reinterpret_cast<uint16_t*>(to) + i, v);
  }
}

// c[kRows][kVectors * kWidth] = or += a[kRows][depth] * b[depth][...]; strides in floats.
template <int kRows, int kVectors, bool kAdd>
inline void multiply_block(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                           float* c, int64_t c_stride) {
  vf sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[r][j] = kAdd ? vload(c + r * c_stride + j * kWidth) : vzero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    vf row[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) row[j] = vload(b + k * b_stride + j * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const vf x = vset(a[r * a_stride + k]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[r][j] = vfma(x, row[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) vstore(c + r * c_stride + j * kWidth, sum[r][j]);
  }
}

constexpr int kBlockRows = kWidth == 16 ? 6 : kWidth == 8 ? 4 : 2;
constexpr int kBlockVectors = kWidth == 16 ? 4 : 2;

template <int kVectors, bool kAdd>
void multiply_columns(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                      float* c, int64_t c_stride, int64_t rows) {
  int64_t r = 0;
  for (; r + kBlockRows <= rows; r += kBlockRows) {
    multiply_block<kBlockRows, kVectors, kAdd>(a + r * a_stride, a_stride, b, b_stride, depth,
                                               c + r * c_stride, c_stride);
  }
  for (; r + 2 <= rows; r += 2) {
    multiply_block<2, kVectors, kAdd>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride,
                                      c_stride);
  }
  if (r < rows) {
    multiply_block<1, kVectors, kAdd>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride,
                                      c_stride);
  }
}

// c[rows][columns] = or += a[rows][depth] * b[depth][columns]; columns a multiple of kWidth.
template <bool kAdd>
void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* c,
              int64_t c_stride, int64_t rows, int64_t columns) {
  int64_t j = 0;
  for (; j + kBlockVectors * kWidth <= columns; j += kBlockVectors * kWidth) {
    multiply_columns<kBlockVectors, kAdd>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, rows);
  }
  for (; j < columns; j += kWidth)
    multiply_columns<1, kAdd>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, rows);
}

// Where a cached position's entry lies.
inline const uint8_t* entry(const uint8_t* cache, int64_t block_bytes, CacheType type, int64_t depth,
                            const AttentionTile& t, int64_t position) {
  const int64_t block = t.table[position / t.block_size];
  return element(cache + block * block_bytes, type, position % t.block_size * depth);
}

// Asks for a position's entry in the next tile: blocks lie anywhere, so the hardware does not see them
// coming.
inline void prefetch_next(const uint8_t* cache, int64_t block_bytes, CacheType type, int64_t depth,
                          const AttentionTile& t, int64_t position) {
  if (position + kAttentionTile >= t.end) return;
  const uint8_t* next = entry(cache, block_bytes, type, depth, t, position + kAttentionTile);
  for (const uint8_t* p = next; p < element(next, type, depth); p += 64) __builtin_prefetch(p);
}

template <CacheType kType>
inline vf load_as(const uint8_t* p, int64_t i) {
  return load_cache(element(p, kType, i), kType);
}

// Positions [start, start + count) of the keys, transposed to keys[depth][kAttentionTile]. Columns up to the
// next multiple of kWidth repeat the last one; their scores are hidden.
template <CacheType kType>
void load_keys(const AttentionTile& t, int64_t start, int count, float* keys) {
  for (int p = 0; p < count; p += kWidth) {
    const uint8_t* places[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const int64_t position = start + (p + i < count ? p + i : count - 1);
      places[i] = entry(t.keys, t.key_block, kType, t.depth, t, position);
      prefetch_next(t.keys, t.key_block, kType, t.depth, t, position);
    }
    for (int d = 0; d < t.depth; d += kWidth) {
      vf rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) rows[i] = load_as<kType>(places[i], d);
      vtranspose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) vstore(keys + (d + i) * kAttentionTile + p, rows[i]);
    }
  }
}

template <CacheType kType>
void load_values(const AttentionTile& t, int64_t start, int count, float* values) {
  for (int p = 0; p < count; ++p) {
    const uint8_t* place = entry(t.values, t.value_block, kType, t.value_depth, t, start + p);
    prefetch_next(t.values, t.value_block, kType, t.value_depth, t, start + p);
    for (int d = 0; d < t.value_depth; d += kWidth) {
      vstore(values + p * t.value_depth + d, load_as<kType>(place, d));
    }
  }
}

using LoadTile = void (*)(const AttentionTile& t, int64_t start, int count, float* out);
constexpr LoadTile kLoadKeys[3] = {load_keys<CacheType::f32>, load_keys<CacheType::f16>,
                                   load_keys<CacheType::bf16>};
constexpr LoadTile kLoadValues[3] = {load_values<CacheType::f32>, load_values<CacheType::f16>,
                                     load_values<CacheType::bf16>};

void cap_scores(float* scores, int columns, float softcap) {
  const vf cap = vset(softcap), inverse = vset(1.0f / softcap);
  for (int j = 0; j < columns; j += kWidth) vstore(scores + j, cap * vtanh(vload(scores + j) * inverse));
}

// Turns one row of scores into weights and rescales what was summed before.
void update_row(float* scores, int columns, float* highest, float* total, float* sums, int value_depth) {
  vf best = vload(scores);
  for (int j = kWidth; j < columns; j += kWidth) best = vmax(best, vload(scores + j));
  const float top = vhighest(best), before = *highest;
  const float now = top > before ? top : before;
  if (now == kNone) {  // nothing visible so far
    for (int j = 0; j < columns; j += kWidth) vstore(scores + j, vzero());
    return;
  }
  const vf shift = vset(now);
  vf sum = vzero();
  for (int j = 0; j < columns; j += kWidth) {
    const vf weight = vexp(vload(scores + j) - shift);
    vstore(scores + j, weight);
    sum = sum + weight;
  }
  if (now != before) {
    float kept[kWidth];
    vstore(kept, vexp(vset(before) - shift));
    *total *= kept[0];
    *highest = now;
    const vf factor = vset(kept[0]);
    for (int d = 0; d < value_depth; d += kWidth) vstore(sums + d, vload(sums + d) * factor);
  }
  *total += vsum(sum);
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
    kLoadKeys[static_cast<int>(t.key_type)](t, start, count, keys);
    kLoadValues[static_cast<int>(t.value_type)](t, start, count, values);
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
