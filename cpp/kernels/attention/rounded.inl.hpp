// Products of rounded rows and the online softmax between them, in powers of two; see rounded.hpp and
// words.inl.hpp.
#pragma once

#include "kernels/attention/rounded.hpp"
#include "kernels/attention/sums.inl.hpp"
#include "kernels/attention/tile.inl.hpp"
#include "kernels/attention/words.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
// Base-2 scores may lie so far above the one that weights are relative to before sums are scaled anew.
constexpr float kHeadroom = 8.0f;

// What follows keeps to the two pipes that multiply (and compare) as evenly as to the two that add, shift and
// convert: Zen 4 has two 32-byte pipes of each kind.

// p(x) * 2^n with p near 2^x for x in [-0.5, 0.5], relative error 8e-5, which rounding to bf16 hides: the
// minimax polynomial of degree 3. `n` is kShifter and an integer, so that its lowest bits are that integer;
// from 127 on it does not fit. Below -125, and for x of those, the result is 0. A NaN stays one: those that
// arise here have no low bits.
constexpr float kShifter = 12582912.0f;  // 1.5 * 2^23
inline vf vexp2_parts(vf x, vf n) {
  vf p = vfma(vset(0.05517166906f), x, vset(0.2426111222f));
  p = vfma(p, x, vset(0.6932609855f));
  p = vfma(p, x, vset(0.9999280735f));
  const __mmask16 some = _mm512_cmp_ps_mask(n, vset(kShifter - 125.0f), _CMP_NLT_UQ);
  return _mm512_castsi512_ps(
      _mm512_maskz_add_epi32(some, _mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}

// 2^x of x up to 127.
inline vf vexp2(vf x) {
  const vf clamped = vmax(vset(-200.0f), x), n = clamped + vset(kShifter);
  return vexp2_parts(clamped - (n - vset(kShifter)), n);
}

// Scores beyond this have no fraction worth speaking of, and do not fit beside kShifter.
constexpr float kPlain = 1048576.0f;

// Pairs of 16-bit integers, summed as integers from 0 on.
struct Words {
  using Sum = __m512i;
  static Sum begin(const void*) { return _mm512_setzero_si512(); }
  static Sum add(Sum sum, __m512i a, __m512i b) { return _mm512_dpwssd_epi32(sum, a, b); }
};
// Pairs of bf16, added to floats.
struct Bfloats {
  using Sum = __m512;
  static Sum begin(const void* sums) { return _mm512_loadu_ps(sums); }
  static Sum add(Sum sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
};

// c[kRows][kVectors * 16] from a[kRows][pairs] and b[pairs][...], strides in pairs of 4 bytes.
template <typename Kind, int kRows, int kVectors>
inline void multiply_pairs(const int32_t* a, int64_t a_stride, const int32_t* b, int64_t b_stride,
                           int64_t pairs, int32_t* c, int64_t c_stride) {
  typename Kind::Sum sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[r][j] = Kind::begin(c + r * c_stride + 16 * j);
  }
  for (int64_t k = 0; k < pairs; ++k) {
    __m512i row[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) row[j] = _mm512_loadu_si512(b + k * b_stride + 16 * j);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = _mm512_set1_epi32(a[r * a_stride + k]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[r][j] = Kind::add(sum[r][j], row[j], x);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) _mm512_storeu_si512(c + r * c_stride + 16 * j, (__m512i)sum[r][j]);
  }
}

template <typename Kind, int kVectors>
void multiply_pair_columns(const int32_t* a, int64_t a_stride, const int32_t* b, int64_t b_stride,
                           int64_t pairs, int32_t* c, int64_t c_stride, int64_t rows) {
  int64_t r = 0;
  const auto block = [&]<int kRows>() {
    multiply_pairs<Kind, kRows, kVectors>(a + r * a_stride, a_stride, b, b_stride, pairs, c + r * c_stride,
                                          c_stride);
    r += kRows;
  };
  while (r + 6 <= rows) block.template operator()<6>();
  if (r + 4 <= rows) block.template operator()<4>();
  if (r + 2 <= rows) block.template operator()<2>();
  if (r < rows) block.template operator()<1>();
}

// c[rows][columns] from a[rows][pairs] and b[pairs][columns]; columns a multiple of 16.
template <typename Kind>
void multiply_all_pairs(const int32_t* a, int64_t a_stride, const int32_t* b, int64_t b_stride, int64_t pairs,
                        int32_t* c, int64_t c_stride, int64_t rows, int64_t columns) {
  int64_t j = 0;
  for (; j + 64 <= columns; j += 64)
    multiply_pair_columns<Kind, 4>(a, a_stride, b + j, b_stride, pairs, c + j, c_stride, rows);
  const int64_t left = (columns - j) / 16;
  if (left == 3) multiply_pair_columns<Kind, 3>(a, a_stride, b + j, b_stride, pairs, c + j, c_stride, rows);
  if (left == 2) multiply_pair_columns<Kind, 2>(a, a_stride, b + j, b_stride, pairs, c + j, c_stride, rows);
  if (left == 1) multiply_pair_columns<Kind, 1>(a, a_stride, b + j, b_stride, pairs, c + j, c_stride, rows);
}

// Query rows of a tile of work.
struct RoundedRows {
  int32_t* queries;  // codes [rows][words / 2]
  float* steps;      // times the scale, and log2 e unless there is a cap
  // [rows], base 2; [rows][16], lanes; [rows][width]
  float *highest, *totals, *sums;
  int64_t words;
  int width;
  float softcap;
};

// Positions of a tile: keys as pairs [words / 2][kAttentionTile] with their steps, values as pairs of bf16
// [kAttentionTile / 2][width] or floats [kAttentionTile][width]; both zeros from `count` to `columns`.
struct RoundedKeys {
  const int32_t* keys;
  const float* steps;
  const void* values;
  int count, columns;
};

template <bool kBfloats>
inline void store_weights(const vf* weights, int vectors, float* out) {
  if constexpr (!kBfloats) {
    for (int j = 0; j < vectors; ++j) vstore(out + 16 * j, weights[j]);
  } else {
    for (int j = 0; j < vectors; j += 2) {
      const vf high = j + 1 < vectors ? weights[j + 1] : vzero();
      _mm512_storeu_si512(out + 8 * j, (__m512i)_mm512_cvtne2ps_pbh(high, weights[j]));
    }
  }
}

// Lowers what was summed up to weights relative to a new highest score, which is taken as an integer.
inline void raise_highest(const RoundedRows& rows, int64_t r, float found) {
  const float top = __builtin_ceilf(found);
  const vf factor = vexp2(vset(rows.highest[r] - top));
  rows.highest[r] = top;
  vstore(rows.totals + 16 * r, vload(rows.totals + 16 * r) * factor);
  float* sums = rows.sums + r * rows.width;
  for (int d = 0; d < rows.width; d += kWidth) vstore(sums + d, vload(sums + d) * factor);
}

// Scores of row r, whose columns [first, last) are visible, as weights of the group's row i.
template <bool kBfloats, int kVectors>
inline void weigh_row(const RoundedRows& rows, const vf* key_steps, int64_t r, const int32_t* scores,
                      int first, int last, float* weights) {
  vf score[kVectors];  // times `step`
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j)
    score[j] = _mm512_cvtepi32_ps(_mm512_loadu_si512(scores + 16 * j)) * key_steps[j];
  float step = rows.steps[r];
  if (rows.softcap > 0) {
    const vf cap = vset(rows.softcap * kLog2E), inverse = vset(step / rows.softcap);
    for (int j = 0; j < kVectors; ++j) score[j] = cap * vtanh(score[j] * inverse);
    step = 1.0f;
  }
  if (first > 0 || last < 16 * kVectors) {
    const uint64_t until = last >= 64 ? ~uint64_t{0} : (uint64_t{1} << last) - 1;
    const uint64_t seen = until & (first >= 64 ? 0 : ~uint64_t{0} << first);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      score[j] = _mm512_mask_blend_ps(static_cast<__mmask16>(seen >> (16 * j)), vset(kNone), score[j]);
  }
  vf best = score[0];
#pragma GCC unroll 4
  for (int j = 1; j < kVectors; ++j) best = vmax(best, score[j]);
  best = best * vset(step);
  if (_mm512_cmp_ps_mask(best, vset(rows.highest[r] + kHeadroom), _CMP_GT_OQ))
    raise_highest(rows, r, vhighest(best));
  const float highest = rows.highest[r];
  vf total = vload(rows.totals + 16 * r);
  if (__builtin_fabsf(highest) < kPlain) {
    // An integer fits beside kShifter; the products are not rounded before they are taken apart.
    const vf by = vset(step), shift = vset(kShifter - highest);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const vf n = vfma(score[j], by, shift);
      score[j] = vexp2_parts(vfma(score[j], by, shift - n), n);
      total = total + score[j];
    }
  } else {
    for (int j = 0; j < kVectors; ++j) {
      score[j] = vexp2(score[j] * vset(step) - vset(highest));
      total = total + score[j];
    }
  }
  vstore(rows.totals + 16 * r, total);
  store_weights<kBfloats>(score, kVectors, weights);
}

// Rows [from, to) against a tile; visible(row, first, last) says which of its columns a row sees.
template <bool kBfloats, int kVectors, typename Visible>
void attend_columns(const RoundedRows& rows, const RoundedKeys& t, int64_t from, int64_t to, int32_t* scores,
                    float* weights, const Visible& visible) {
  vf key_steps[kVectors];
  for (int j = 0; j < kVectors; ++j) key_steps[j] = vload(t.steps + 16 * j);
  for (int64_t r = from; r < to; r += kRoundedGroup) {
    const int64_t count = to - r < kRoundedGroup ? to - r : kRoundedGroup, pairs = rows.words / 2;
    multiply_pair_columns<Words, kVectors>(rows.queries + r * pairs, pairs, t.keys, kAttentionTile, pairs,
                                           scores, kAttentionTile, count);
    for (int64_t i = 0; i < count; ++i) {
      int first, last;
      visible(r + i, first, last);
      weigh_row<kBfloats, kVectors>(rows, key_steps, r + i, scores + i * kAttentionTile, first, last,
                                    weights + i * kAttentionTile);
    }
    float* sums = rows.sums + r * rows.width;
    if constexpr (kBfloats) {
      multiply_all_pairs<Bfloats>(reinterpret_cast<const int32_t*>(weights), kAttentionTile,
                                  static_cast<const int32_t*>(t.values), rows.width, (t.count + 1) / 2,
                                  reinterpret_cast<int32_t*>(sums), rows.width, count, rows.width);
    } else {
      multiply<true>(weights, kAttentionTile, static_cast<const float*>(t.values), rows.width, t.count, sums,
                     rows.width, count, rows.width);
    }
  }
}

template <bool kBfloats, typename Visible>
void attend_tile(const RoundedRows& rows, const RoundedKeys& t, int64_t from, int64_t to, int32_t* scores,
                 float* weights, const Visible& visible) {
  switch (t.columns / 16) {
    case 1:
      return attend_columns<kBfloats, 1>(rows, t, from, to, scores, weights, visible);
    case 2:
      return attend_columns<kBfloats, 2>(rows, t, from, to, scores, weights, visible);
    case 3:
      return attend_columns<kBfloats, 3>(rows, t, from, to, scores, weights, visible);
    default:
      return attend_columns<kBfloats, 4>(rows, t, from, to, scores, weights, visible);
  }
}

// Hands out scratch memory in whole cache lines.
struct Places16 {
  float* free;
  template <typename T = float>
  T* take(int64_t floats) {
    float* start = free;
    free += (floats + 15) / 16 * 16;
    return reinterpret_cast<T*>(start);
  }
};

// What a tile's positions are converted in.
struct RoundedSpace {
  float* rows;     // [kAttentionTile][deepest]
  int16_t* codes;  // [kAttentionTile][words]
  int32_t* keys;   // [words / 2][kAttentionTile]
  float* steps;
  float* values;  // [kAttentionTile][width], or half of it
  int32_t* scores;
  float* weights;  // both [kRoundedGroup][kAttentionTile]
};

inline void clear_rows(const RoundedRows& rows, int64_t count) {
  for (int64_t r = 0; r < count; ++r) {
    rows.highest[r] = -kLargest;
    vstore(rows.totals + 16 * r, vzero());
    for (int d = 0; d < rows.width; d += kWidth) vstore(rows.sums + r * rows.width + d, vzero());
  }
}

inline RoundedRows take_rows(Places16& places, int64_t count, int64_t depth, int width) {
  RoundedRows rows{};
  rows.words = padded_words(depth);
  rows.width = width;
  rows.queries = places.take<int32_t>(count * rows.words / 2);
  rows.steps = places.take((count + 15) / 16 * 16);
  rows.highest = places.take(count);
  rows.totals = places.take(count * 16);
  rows.sums = places.take(count * width);
  return rows;
}

inline RoundedSpace take_space(Places16& places, int64_t depth, int width) {
  const int64_t words = padded_words(depth);
  RoundedSpace s{};
  s.rows = places.take(kAttentionTile * (words > width ? words : width));
  s.codes = places.take<int16_t>(kAttentionTile * words / 2);
  s.keys = places.take<int32_t>(kAttentionTile * words / 2);
  s.steps = places.take(kAttentionTile);
  s.values = places.take(int64_t{kAttentionTile} * width);
  s.scores = places.take<int32_t>(kRoundedGroup * kAttentionTile);
  s.weights = places.take(kRoundedGroup * kAttentionTile);
  return s;
}

// Codes, keys and steps of s.rows[count][depth].
inline void round_keys(const RoundedSpace& s, int count, int depth, int64_t words) {
  round_rows(s.rows, depth, count, depth, s.codes, s.steps);
  pad_words(s.codes, words, count, s.steps);
  turn_words(s.codes, words, count, kAttentionTile, s.keys);
}

template <bool kBfloats>
inline void round_values(const float* rows, int64_t stride, int count, int width, int columns, float* out) {
  if constexpr (kBfloats) {
    pair_rows(rows, stride, count, width, columns, reinterpret_cast<uint32_t*>(out));
  } else if (rows != out) {
    for (int r = 0; r < count; ++r) {
      for (int d = 0; d < width; d += kWidth) vstore(out + r * width + d, vload(rows + r * stride + d));
    }
  }
}

// Of a row: the natural logarithm's highest score, and the total.
inline float natural_highest(float highest) {
  return highest == -kLargest ? kNone : highest * kLn2;
}

}  // namespace
}  // namespace ktc::kernels
