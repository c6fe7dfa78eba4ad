// Attention of few query rows: cached rows are read where they lie, a few at a time, converted in registers
// and used at once by all query rows; for the vectors of the simd/ header included before.
//
// All key heads of a tile are gone through before the next tile, in the order in which a block holds them:
// memory is fast in long runs. While keys are multiplied the head's values are asked for, and then the next
// head's keys, to L2: a core can have few lines under way to L1 (measured on Zen 4: 11 to 18 GB/s, and 25 to
// 28 to L2).
#pragma once

#include "kernels/attention/sums.inl.hpp"
#include "kernels/attention/tile.inl.hpp"

namespace ktc::kernels {
namespace {

// Query rows that go through the cached rows together, the keys they meet at a time, and the vectors of a
// value.
template <int kRows>
constexpr int keys_at_once() {
  if (kWidth == 16) return kRows <= 3 ? 8 : kRows == 4 ? 4 : 2;
  return kRows == 1 ? 8 : kRows <= 3 ? 4 : kRows == 4 ? 2 : 1;
}
template <int kRows>
constexpr int vectors_at_once() {
  if (kWidth == 16) return kRows == 1 ? 8 : kRows <= 4 ? 4 : 2;
  return kRows == 1 ? 8 : kRows == 2 ? 4 : kRows <= 4 ? 2 : 1;
}

// What one pass over cached rows asks for: `count` of them, `lines` each, `shift` bytes behind `rows`. Lines
// are asked for evenly over the pass: in a burst they would wait for each other.
struct Ahead {
  const uint8_t* const* rows;
  int64_t shift;
  int count, lines;
  // Always inline: GCC takes a function that only prefetches for one without effect and drops the call.
  __attribute__((always_inline)) void ask(int i, int line) const {
    __builtin_prefetch(rows[i] + shift + 64 * line, 0, 2);
  }
};

// scores[row][0, count rounded up) = queries[row] . keys; scores are kAttentionTile floats apart. Rows of the
// head lie `shift` bytes behind their places.
template <int kRows, CacheType kType>
void score_rows(const float* queries, int depth, const Places& keys, int64_t shift, int count,
                const Ahead& ahead, float* scores) {
  constexpr int kKeys = keys_at_once<kRows>();
  constexpr int kLine = 64 / static_cast<int>(element_bytes(kType, 1));  // elements
  static_assert(kRows * kKeys % kSums == 0, "sums are taken kSums at a time");
  const int groups = depth / kCacheGroup;
  for (int at = 0; at < count; at += kKeys) {
    const uint8_t* row[kKeys];
#pragma GCC unroll 8
    for (int i = 0; i < kKeys; ++i) row[i] = keys.row[at + i] + shift;
    const float* scales = keys.scales + at * groups;
    vf sum[kRows * kKeys];
#pragma GCC unroll 24
    for (int i = 0; i < kRows * kKeys; ++i) sum[i] = vzero();
    const int asked = at + kKeys <= ahead.count ? kKeys : at < ahead.count ? ahead.count - at : 0;
    int line = asked > 0 ? 0 : ahead.lines;
    for (int d = 0; d < depth; d += kWidth) {
      // The fewer of both wait in registers.
      if constexpr (kRows > kKeys) {
        vf key[kKeys];
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) key[i] = load_cached<kType>(row[i], scales + i * groups, d);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const vf query = vload(queries + r * depth + d);
#pragma GCC unroll 8
          for (int i = 0; i < kKeys; ++i) sum[r * kKeys + i] = vfma(query, key[i], sum[r * kKeys + i]);
        }
      } else {
        vf query[kRows];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) query[r] = vload(queries + r * depth + d);
#pragma GCC unroll 8
        for (int i = 0; i < kKeys; ++i) {
          const vf key = load_cached<kType>(row[i], scales + i * groups, d);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) sum[r * kKeys + i] = vfma(query[r], key, sum[r * kKeys + i]);
        }
      }
      if (d % kLine == 0 && line < ahead.lines) {
        for (int i = 0; i < asked; ++i) ahead.ask(at + i, line);
        ++line;
      }
    }
    for (; line < ahead.lines; ++line) {
      for (int i = 0; i < asked; ++i) ahead.ask(at + i, line);
    }
    float found[kRows * kKeys];
#pragma GCC unroll 6
    for (int i = 0; i < kRows * kKeys; i += kSums) vsums(sum + i, found + i);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      __builtin_memcpy(scores + r * kAttentionTile + at, found + r * kKeys, kKeys * sizeof(float));
  }
}

// Vectors [d, d + kVectors) of sums[row] += weights[row] * values.
template <int kRows, int kVectors, CacheType kType>
inline void add_vectors(const float* weights, const Places& values, int64_t shift, int count, int depth,
                        int d, const Ahead& ahead, float* sums) {
  const int groups = depth / kCacheGroup;
  const int from = ahead.lines * d / depth, to = ahead.lines * (d + kVectors * kWidth) / depth;
  vf sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) sum[r][j] = vload(sums + r * depth + d + j * kWidth);
  }
  for (int p = 0; p < count; ++p) {
    if (p < ahead.count) {
      for (int line = from; line < to; ++line) ahead.ask(p, line);
    }
    vf value[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j)
      value[j] = load_cached<kType>(values.row[p] + shift, values.scales + p * groups, d + j * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const vf weight = vset(weights[r * kAttentionTile + p]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[r][j] = vfma(weight, value[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) vstore(sums + r * depth + d + j * kWidth, sum[r][j]);
  }
}

template <int kRows, CacheType kType>
void add_rows(const float* weights, const Places& values, int64_t shift, int count, int depth,
              const Ahead& ahead, float* sums) {
  constexpr int kVectors = vectors_at_once<kRows>();
  constexpr int kHalf = kVectors > 1 ? kVectors / 2 : 1;
  for (int d = 0; d < depth;) {
    const int left = (depth - d) / kWidth;
    if (left >= kVectors) {
      add_vectors<kRows, kVectors, kType>(weights, values, shift, count, depth, d, ahead, sums);
      d += kVectors * kWidth;
    } else if (left >= kHalf) {
      add_vectors<kRows, kHalf, kType>(weights, values, shift, count, depth, d, ahead, sums);
      d += kHalf * kWidth;
    } else {
      add_vectors<kRows, 1, kType>(weights, values, shift, count, depth, d, ahead, sums);
      d += kWidth;
    }
  }
}

// Calls body.operator()<n>(first) for runs of n rows that have a kernel.
template <typename Body>
inline void for_rows(int rows, const Body& body) {
  int r = 0;
  for (; r + 8 <= rows; r += 8) body.template operator()<8>(r);
  for (; r + 4 <= rows; r += 4) body.template operator()<4>(r);
  if (rows - r == 3) body.template operator()<3>(r);
  if (rows - r == 2) body.template operator()<2>(r);
  if (rows - r == 1) body.template operator()<1>(r);
}

template <CacheType kType>
void score(const float* queries, int rows, int depth, const Places& keys, int64_t shift, int count,
           Ahead ahead, float* scores) {
  for_rows(rows, [&]<int kRows>(int r) {
    score_rows<kRows, kType>(queries + r * depth, depth, keys, shift, count, ahead,
                             scores + r * kAttentionTile);
    ahead.count = 0;
  });
}

template <CacheType kType>
void add(const float* weights, int rows, int depth, const Places& values, int64_t shift, int count,
         Ahead ahead, float* sums) {
  for_rows(rows, [&]<int kRows>(int r) {
    add_rows<kRows, kType>(weights + r * kAttentionTile, values, shift, count, depth, ahead,
                           sums + r * depth);
    ahead.count = 0;
  });
}

using StreamRows = void (*)(const float* from, int rows, int depth, const Places& cached, int64_t shift,
                            int count, Ahead ahead, float* to);
constexpr StreamRows kScore[kCacheTypes] = {score<CacheType::f32>, score<CacheType::f16>,
                                            score<CacheType::bf16>, score<CacheType::q8_0>};
constexpr StreamRows kAdd[kCacheTypes] = {add<CacheType::f32>, add<CacheType::f16>, add<CacheType::bf16>,
                                          add<CacheType::q8_0>};

}  // namespace
}  // namespace ktc::kernels
