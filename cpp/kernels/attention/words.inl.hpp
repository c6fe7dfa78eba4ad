// Rows of floats as 16-bit integers with a step each, and the layouts that pairs of them are multiplied in.
//
// Sums of products of codes are 32 bits wide. By Cauchy and Schwarz they are at most the product of the rows'
// norms, so codes are scaled to a norm of 32767: no sum overflows, whatever the depth, and no code does. The
// NMSE of a rounded row is depth / 12 / 32767^2, that is 1e-8 at a depth of 128.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace ktc::kernels {
namespace {

constexpr float kWordNorm = 32760.0f;  // rounding adds up to sqrt(depth) / 2 to the norm of a product's sides
constexpr float kLargest = 3.40282347e38f;

inline float first_lane(vf v) {
  return _mm512_cvtss_f32(v);
}

// Codes padded with zeros to whole vectors of pairs.
static constexpr int64_t padded_words(int64_t depth) {
  return (depth + 31) / 32 * 32;
}

// The step of a row of this norm; rows of zeros have a step of 1.
inline float word_step(float squares, const float* row, int depth) {
  if (squares > 1e-30f && squares < 1e38f) return first_lane(vsqrt(vset(squares))) * (1 / kWordNorm);
  // Too small or large to be squared as they are, or no numbers.
  vf most = vzero();
  for (int d = 0; d < depth; d += kWidth) most = vmax(most, vabs(vload(row + d)));
  const float highest = vhighest(most);
  if (squares != squares || !(highest <= kLargest)) return __builtin_nanf("");
  if (highest < 1e-34f) return 1.0f;
  const vf inverse = vset(1.0f / highest);
  vf sum = vzero();
  for (int d = 0; d < depth; d += kWidth) {
    const vf part = vload(row + d) * inverse;
    sum = vfma(part, part, sum);
  }
  return first_lane(vsqrt(vset(vsum(sum)))) * (highest * (1 / kWordNorm));
}

// Codes of a row, padded with zeros.
inline void write_words(const float* row, int depth, float step, int16_t* out) {
  const vf inverse = vset(1.0f / step);
  int d = 0;
  for (; d + 32 <= depth; d += 32) {
    const vi low = vtoint(vload(row + d) * inverse), high = vtoint(vload(row + d + 16) * inverse);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d), _mm512_cvtsepi32_epi16(low));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d + 16), _mm512_cvtsepi32_epi16(high));
  }
  if (d == depth) return;
  const vi low = vtoint(vload(row + d) * inverse);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d), _mm512_cvtsepi32_epi16(low));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + d + 16), _mm256_setzero_si256());
}

// rows[count][depth] as codes [count][padded_words(depth)] and steps.
inline void round_rows(const float* rows, int64_t stride, int64_t count, int depth, int16_t* out,
                       float* steps) {
  const int64_t words = padded_words(depth);
  for (int64_t r = 0; r < count; r += 8) {
    const int64_t most = count - r < 8 ? count - r : 8;
    vf squares[8];
    float sums[8];
    for (int64_t i = 0; i < 8; ++i) {
      const float* row = rows + (r + (i < most ? i : 0)) * stride;
      vf even = vzero(), odd = vzero();
      int d = 0;
      for (; d + 32 <= depth; d += 32) {
        const vf a = vload(row + d), b = vload(row + d + 16);
        even = vfma(a, a, even);
        odd = vfma(b, b, odd);
      }
      if (d < depth) even = vfma(vload(row + d), vload(row + d), even);
      squares[i] = even + odd;
    }
    vsums(squares, sums);
    for (int64_t i = 0; i < most; ++i) {
      const float* row = rows + (r + i) * stride;
      steps[r + i] = word_step(sums[i], row, depth);
      write_words(row, depth, steps[r + i], out + (r + i) * words);
    }
  }
}

// Rows [count, up to a multiple of 16) of zeros.
inline void pad_words(int16_t* codes, int64_t words, int64_t count, float* steps) {
  for (int64_t r = count; r % kWidth != 0; ++r) {
    steps[r] = 1.0f;
    for (int64_t d = 0; d < words; d += 32)
      _mm512_storeu_si512(codes + r * words + d, _mm512_setzero_si512());
  }
}

// Codes [count, rounded up to 16][words] as pairs out[words / 2][width][2]: `width` pairs apart.
inline void turn_words(const int16_t* codes, int64_t words, int64_t count, int64_t width, int32_t* out) {
  for (int64_t r = 0; r < count; r += kWidth) {
    for (int64_t d = 0; d < words; d += 32) {
      vf part[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i)
        part[i] = _mm512_castsi512_ps(_mm512_loadu_si512(codes + (r + i) * words + d));
      vtranspose(part);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i)
        _mm512_storeu_si512(out + (d / 2 + i) * width + r, _mm512_castps_si512(part[i]));
    }
  }
}

// The columns of in[depth][width] as such pairs with a step a column; depth a multiple of 32, width of 16.
inline void round_columns(const float* in, int64_t depth, int64_t width, int32_t* out, float* steps) {
  for (int64_t c = 0; c < width; c += kWidth) {
    vf most = vzero();
    for (int64_t d = 0; d < depth; ++d) most = vmax(most, vabs(vload(in + d * width + c)));
    const __mmask16 some = _mm512_cmp_ps_mask(most, vset(1e-34f), _CMP_NLT_UQ);
    const vf scale = vset(1.0f) / most;
    vf squares = vzero();
    for (int64_t d = 0; d < depth; ++d) {
      const vf part = vload(in + d * width + c) * scale;
      squares = vfma(part, part, squares);
    }
    const vf found = vsqrt(squares) * most * vset(1 / kWordNorm);  // infinities: 0 times inf, so NaN
    const vf step = _mm512_mask_blend_ps(some, vset(1.0f), found);
    vstore(steps + c, step);
    const vf inverse = vset(1.0f) / step;
    for (int64_t d = 0; d < depth; d += 2) {
      const vi even = vtoint(vload(in + d * width + c) * inverse);
      const vi odd = vtoint(vload(in + (d + 1) * width + c) * inverse);
      const vi low = _mm512_and_si512(even, _mm512_set1_epi32(0xffff));
      _mm512_storeu_si512(out + d / 2 * width + c, _mm512_or_si512(low, _mm512_slli_epi32(odd, 16)));
    }
  }
}

// Rows [count][width], `stride` apart, as bf16 pairs of neighbours out[padded / 2][width][2]; those behind
// `count` are zeros.
inline void pair_rows(const float* rows, int64_t stride, int64_t count, int64_t width, int64_t padded,
                      uint32_t* out) {
  alignas(64) static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i places = _mm512_load_si512(order);
  for (int64_t r = 0; r < padded; r += 2) {
    for (int64_t d = 0; d < width; d += kWidth) {
      const vf low = r < count ? vload(rows + r * stride + d) : vzero();
      const vf high = r + 1 < count ? vload(rows + (r + 1) * stride + d) : vzero();
      const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
      _mm512_storeu_si512(out + r / 2 * width + d, _mm512_permutexvar_epi16(places, (__m512i)both));
    }
  }
}

}  // namespace
}  // namespace ktc::kernels
