// Tiles of cached rows as matrices of floats, products of such matrices, and the online softmax (Milakov and
// Gimelshein 2018), for the vectors of the simd/ header included before.
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
inline const uint8_t* entry(const CachedRows& rows, const Pages& pages, int64_t position) {
  const int64_t block = pages.table[position / pages.block_size];
  return element(rows.data + block * rows.block, rows.type, position % pages.block_size * rows.depth);
}

// Asks for a position's entry in the next tile: blocks lie anywhere, so the hardware does not see them
// coming.
inline void prefetch_next(const CachedRows& rows, const Pages& pages, int64_t position) {
  if (position + kAttentionTile >= pages.end) return;
  const uint8_t* next = entry(rows, pages, position + kAttentionTile);
  for (const uint8_t* p = next; p < element(next, rows.type, rows.depth); p += 64) __builtin_prefetch(p);
}

template <CacheType kType>
inline vf load_as(const uint8_t* p, int64_t i) {
  return load_cache(element(p, kType, i), kType);
}

// Positions [start, start + count), transposed to out[depth][kAttentionTile]. Columns up to the next multiple
// of kWidth repeat the last one; their scores are hidden.
template <CacheType kType>
void load_columns(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out) {
  for (int p = 0; p < count; p += kWidth) {
    const uint8_t* places[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const int64_t position = start + (p + i < count ? p + i : count - 1);
      places[i] = entry(rows, pages, position);
      prefetch_next(rows, pages, position);
    }
    for (int d = 0; d < rows.depth; d += kWidth) {
      vf part[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) part[i] = load_as<kType>(places[i], d);
      vtranspose(part);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) vstore(out + (d + i) * kAttentionTile + p, part[i]);
    }
  }
}

// The same positions as they are, to out[count][depth].
template <CacheType kType>
void load_rows(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out) {
  for (int p = 0; p < count; ++p) {
    const uint8_t* place = entry(rows, pages, start + p);
    prefetch_next(rows, pages, start + p);
    for (int d = 0; d < rows.depth; d += kWidth) vstore(out + p * rows.depth + d, load_as<kType>(place, d));
  }
}

using LoadTile = void (*)(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out);
constexpr LoadTile kLoadColumns[3] = {load_columns<CacheType::f32>, load_columns<CacheType::f16>,
                                      load_columns<CacheType::bf16>};
constexpr LoadTile kLoadRows[3] = {load_rows<CacheType::f32>, load_rows<CacheType::f16>,
                                   load_rows<CacheType::bf16>};

inline void read_columns(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out) {
  kLoadColumns[static_cast<int>(rows.type)](rows, pages, start, count, out);
}
inline void read_rows(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out) {
  kLoadRows[static_cast<int>(rows.type)](rows, pages, start, count, out);
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

}  // namespace
}  // namespace ktc::kernels
