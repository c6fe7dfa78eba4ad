// Rows of a paged cache: where they lie, their elements as floats, and how they are written, for the vectors
// of the simd/ header included before.
#pragma once

#include "kernels/attention/tables.hpp"

namespace ktc::kernels {
namespace {

// Most scales of a row.
constexpr int kMostGroups = 4096 / kCacheGroup;

// Positions of a tile, row by row.
struct Places {
  const uint8_t* row[kAttentionTile];
  float* scales;  // of q8_0, [positions][depth / kCacheGroup]
};

// Calls body(place in the tile, positions, block, offset in the block) for the blocks that hold positions
// [start, start + count).
template <typename Body>
inline void for_blocks(const CachedRows& rows, const Pages& pages, int64_t start, int count,
                       const Body& body) {
  int64_t index = start / pages.block_size, offset = start % pages.block_size;
  for (int p = 0; p < count; ++index, offset = 0) {
    const int64_t left = pages.block_size - offset;
    const int n = left < count - p ? static_cast<int>(left) : count - p;
    body(p, n, rows.data + pages.table[index] * rows.block, offset);
    p += n;
  }
}

// Where positions [start, start + count) lie; those up to `padded` repeat the last one.
inline void locate(const CachedRows& rows, const Pages& pages, int64_t start, int count, int padded,
                   Places& out) {
  const int64_t step = element_bytes(rows.type, rows.depth);
  for_blocks(rows, pages, start, count, [&](int p, int n, const uint8_t* block, int64_t offset) {
    for (int i = 0; i < n; ++i) out.row[p + i] = block + (offset + i) * step;
  });
  for (int p = count; p < padded; ++p) out.row[p] = out.row[count - 1];
}

// Asks for the scales of positions. Always inline: GCC drops calls of functions that only prefetch.
__attribute__((always_inline)) inline void fetch_scales(const CachedRows& rows, const Pages& pages,
                                                        int64_t start, int count, int64_t shift) {
  if (rows.type != CacheType::q8_0) return;
  const int64_t row = 2 * (rows.depth / kCacheGroup);
  for_blocks(rows, pages, start, count, [&](int, int n, const uint8_t* block, int64_t offset) {
    const uint8_t* scales = block + shift + pages.block_size * rows.depth + offset * row;
    for (int64_t i = 0; i < n * row + 63; i += 64) __builtin_prefetch(scales + i);
  });
}

inline void convert_halves(const uint16_t* from, int n, float* to) {
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) vstore(to + i, vload_half(from + i));
  if (i == n) return;
  uint16_t rest[kWidth] = {};
  float values[kWidth];
  for (int j = i; j < n; ++j) rest[j - i] = from[j];
  vstore(values, vload_half(rest));
  for (int j = i; j < n; ++j) to[j] = values[j - i];
}

// The scales of the positions that `locate` was asked for, of the head `shift` bytes behind.
inline void read_scales(const CachedRows& rows, const Pages& pages, int64_t start, int count, int padded,
                        Places& out, int64_t shift = 0) {
  if (rows.type != CacheType::q8_0) return;
  const int groups = rows.depth / kCacheGroup;
  for_blocks(rows, pages, start, count, [&](int p, int n, const uint8_t* block, int64_t offset) {
    const uint8_t* scales = block + shift + pages.block_size * rows.depth + 2 * offset * groups;
    convert_halves(reinterpret_cast<const uint16_t*>(scales), n * groups, out.scales + p * groups);
  });
  for (int i = count * groups; i < padded * groups; ++i) out.scales[i] = out.scales[i - groups];
}

// Elements [d, d + kWidth) of a row.
template <CacheType kType>
inline vf load_cached(const uint8_t* row, const float* scales, int d) {
  if constexpr (kType == CacheType::f32) return vload(reinterpret_cast<const float*>(row) + d);
  if constexpr (kType == CacheType::f16) return vload_half(reinterpret_cast<const uint16_t*>(row) + d);
  if constexpr (kType == CacheType::bf16) return vload_bfloat(reinterpret_cast<const uint16_t*>(row) + d);
  return vload_s8(row + d) * vset(scales[d / kCacheGroup]);
}

// 32 floats as codes and a scale, which is rounded first; a NaN where any of them is no number.
inline void write_group(const float* from, uint8_t* codes, uint8_t* scale) {
  vf most = vzero(), wrong = vzero();
  for (int i = 0; i < kCacheGroup; i += kWidth) {
    const vf v = vload(from + i);
    most = vmax(most, vabs(v));
    wrong = wrong + v * vzero();
  }
  uint16_t half[kWidth];
  float rounded[kWidth];
  const vf bound = vmin(vset(vhighest(most) / 127.0f), vset(65504.0f));
  vstore_half(half, vsum(wrong) == 0 ? bound : vset(__builtin_nanf("")));
  vstore(rounded, vload_half(half));
  __builtin_memcpy(scale, half, 2);
  const vf divisor = vset(rounded[0] > 0 ? rounded[0] : 1.0f);
  for (int i = 0; i < kCacheGroup; i += kWidth) {
    const vf v = rounded[0] > 0 ? vload(from + i) / divisor : vzero();
    vstore_s8(reinterpret_cast<int8_t*>(codes) + i, vmax(vset(-127.0f), vmin(vset(127.0f), v)));
  }
}

// n is a multiple of 16, with q8_0 of 32.
inline void write_cache(const float* from, int64_t n, CacheType type, uint8_t* to, uint8_t* scales) {
  if (type == CacheType::q8_0) {
    for (int64_t i = 0; i < n; i += kCacheGroup) write_group(from + i, to + i, scales + i / kCacheGroup * 2);
    return;
  }
  for (int64_t i = 0; i < n; i += kWidth) {
    const vf v = vload(from + i);
    if (type == CacheType::f32) vstore(reinterpret_cast<float*>(to) + i, v);
    if (type == CacheType::f16) vstore_half(reinterpret_cast<uint16_t*>(to) + i, v);
    if (type == CacheType::bf16) vstore_bfloat(reinterpret_cast<uint16_t*>(to) + i, v);
  }
}

// Locates kWidth positions, with their scales, and asks for the same ones of the next tile: blocks lie
// anywhere, so the hardware does not see them coming.
inline void open_rows(const CachedRows& rows, const Pages& pages, int64_t start, int count, Places& out) {
  const int64_t ahead = pages.end - start - kAttentionTile;
  if (ahead > 0) {
    const int n = ahead < count ? static_cast<int>(ahead) : count;
    locate(rows, pages, start + kAttentionTile, n, n, out);
    fetch_scales(rows, pages, start + kAttentionTile, n, 0);
    for (int i = 0; i < n; ++i) {
      const uint8_t* next = out.row[i];
      for (int64_t b = 0; b < element_bytes(rows.type, rows.depth); b += 64) __builtin_prefetch(next + b);
    }
  }
  locate(rows, pages, start, count, kWidth, out);
  read_scales(rows, pages, start, count, kWidth, out);
}

// Positions [start, start + count), transposed to out[depth][kAttentionTile]. Columns up to the next multiple
// of kWidth repeat the last one; their scores are hidden.
template <CacheType kType>
void load_columns(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out) {
  float scales[kWidth * kMostGroups];
  const int groups = rows.depth / kCacheGroup;
  Places places;
  places.scales = scales;
  for (int p = 0; p < count; p += kWidth) {
    open_rows(rows, pages, start + p, count - p < kWidth ? count - p : kWidth, places);
    for (int d = 0; d < rows.depth; d += kWidth) {
      vf part[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) part[i] = load_cached<kType>(places.row[i], scales + i * groups, d);
      vtranspose(part);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) vstore(out + (d + i) * kAttentionTile + p, part[i]);
    }
  }
}

// The same positions as they are, to out[count][stride].
template <CacheType kType>
void load_rows(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out,
               int64_t stride) {
  float scales[kWidth * kMostGroups];
  const int groups = rows.depth / kCacheGroup;
  Places places;
  places.scales = scales;
  for (int p = 0; p < count; p += kWidth) {
    const int n = count - p < kWidth ? count - p : kWidth;
    open_rows(rows, pages, start + p, n, places);
    for (int i = 0; i < n; ++i) {
      float* to = out + (p + i) * stride;
      for (int d = 0; d < rows.depth; d += kWidth)
        vstore(to + d, load_cached<kType>(places.row[i], scales + i * groups, d));
    }
  }
}

using LoadColumns = void (*)(const CachedRows& rows, const Pages& pages, int64_t start, int count,
                             float* out);
using LoadRows = void (*)(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out,
                          int64_t stride);
constexpr LoadColumns kLoadColumns[kCacheTypes] = {load_columns<CacheType::f32>, load_columns<CacheType::f16>,
                                                   load_columns<CacheType::bf16>,
                                                   load_columns<CacheType::q8_0>};
constexpr LoadRows kLoadRows[kCacheTypes] = {load_rows<CacheType::f32>, load_rows<CacheType::f16>,
                                             load_rows<CacheType::bf16>, load_rows<CacheType::q8_0>};

inline void read_columns(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out) {
  kLoadColumns[static_cast<int>(rows.type)](rows, pages, start, count, out);
}
inline void read_rows(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out,
                      int64_t stride) {
  kLoadRows[static_cast<int>(rows.type)](rows, pages, start, count, out, stride);
}
inline void read_rows(const CachedRows& rows, const Pages& pages, int64_t start, int count, float* out) {
  read_rows(rows, pages, start, count, out, rows.depth);
}

}  // namespace
}  // namespace ktc::kernels
