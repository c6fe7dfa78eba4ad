// Quantises eight blocks of 32 activations at a time for AVX-512 (F, BW): what a block needs of its 32
// values, the largest one and sums, is found for all of them together. The same bits as `quantize_block`.
//
// Vectors that are to be reduced go through rounds of unpacking and one operation, each of which halves both
// their number and the values left of each.
#pragma once

#include "kernels/linear/activations.hpp"

namespace ktc::kernels {
namespace {

constexpr int kBatch = 8;

// The largest of 16 lanes each of v[0..8), as bits of floats without a sign; in lanes 0..8.
inline __m256i largest_bits(const vi (&v)[kBatch]) {
  vi pairs[4], quads[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    pairs[i] = _mm512_max_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                                _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    quads[i] = _mm512_max_epi32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
  // Lanes of 128 bits: two of the first four vectors, two of the others.
  const vi halves = _mm512_max_epi32(_mm512_shuffle_i64x2(quads[0], quads[1], 0x88),
                                     _mm512_shuffle_i64x2(quads[0], quads[1], 0xdd));
  const vi all = _mm512_max_epi32(halves, _mm512_shuffle_i64x2(halves, halves, 0xb1));
  return _mm512_castsi512_si256(_mm512_shuffle_i64x2(all, all, 0x08));
}

// Sums of the 16 runs of 16 codes in codes[0..4).
inline vi run_sums(const vi (&codes)[4]) {
  vi quads[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    quads[i] = _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_set1_epi8(1), codes[i]), _mm512_set1_epi16(1));
  const vi low =
      _mm512_add_epi32(_mm512_unpacklo_epi32(quads[0], quads[1]), _mm512_unpackhi_epi32(quads[0], quads[1]));
  const vi high =
      _mm512_add_epi32(_mm512_unpacklo_epi32(quads[2], quads[3]), _mm512_unpackhi_epi32(quads[2], quads[3]));
  const vi sums = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                  sums);
}

// What lies behind the codes of blocks [4 kPart, 4 kPart + 4), from the scales of all eight and the sums of
// their halves: the floats of each in a lane of 128 bits, and the integers.
template <int kPart>
inline void block_ends(vf scales, vi sums, vi& floats, vi& integers) {
  constexpr int b = 4 * kPart, h = 8 * kPart;
  const vi mine = _mm512_setr_epi32(b, b, b, b, b + 1, b + 1, b + 1, b + 1, b + 2, b + 2, b + 2, b + 2, b + 3,
                                    b + 3, b + 3, b + 3);
  const vf scale = _mm512_permutexvar_ps(mine, scales);
  // Of each block: the first half, the first half, the first, the second; and what is added to the second.
  const vi first = _mm512_setr_epi32(h, h, h, h + 1, h + 2, h + 2, h + 2, h + 3, h + 4, h + 4, h + 4, h + 5,
                                     h + 6, h + 6, h + 6, h + 7);
  const vi halves = _mm512_permutexvar_epi32(first, sums);
  const vi both = _mm512_mask_add_epi32(halves, 0x2222, halves, _mm512_shuffle_epi32(halves, _MM_PERM_DDDD));
  floats = _mm512_castps_si512(
      _mm512_mask_blend_ps(0x1111, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(both)), scale));
  // [?, both, first, second] becomes minus [both, first, second, 0].
  integers =
      _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_maskz_shuffle_epi32(0x7777, both, _MM_PERM_DDCB));
}

// Blocks of 32 values, v[2 i] and v[2 i + 1], to out + i * stride for i below `count`. False when a block
// holds what is not finite, or nothing but zeros and values whose reciprocal might not be: then nothing is
// written.
inline bool quantize_eight(const vf (&v)[2 * kBatch], int count, uint8_t* out, int64_t stride) {
  constexpr int32_t least = 0x03800000;  // 7.5e-37
  const vi magnitude = _mm512_set1_epi32(0x7fffffff);
  vi large[kBatch];
#pragma GCC unroll 8
  for (int i = 0; i < kBatch; ++i)
    large[i] = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(v[2 * i]), magnitude),
                                _mm512_and_si512(_mm512_castps_si512(v[2 * i + 1]), magnitude));
  const __m256i bits = largest_bits(large);
  const __mmask8 usual = _mm256_cmpge_epi32_mask(bits, _mm256_set1_epi32(least)) &
                         _mm256_cmplt_epi32_mask(bits, _mm256_set1_epi32(0x7f800000));
  const auto wanted = static_cast<__mmask8>((1u << count) - 1);
  if ((usual & wanted) != wanted) return false;
  const __m256 highest = _mm256_castsi256_ps(bits), limit = _mm256_set1_ps(127.0f);
  const vf scales = _mm512_castps256_ps512(_mm256_div_ps(highest, limit));
  alignas(32) float inverses[kBatch];
  _mm256_store_ps(inverses, _mm256_div_ps(limit, highest));

  const vi order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  vi codes[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // two blocks; no code is beyond 127, as no value is beyond the largest
    const vf a = vset(inverses[2 * i]), b = vset(inverses[2 * i + 1]);
    const vi low = _mm512_packs_epi32(vtoint(v[4 * i] * a), vtoint(v[4 * i + 1] * a));
    const vi high = _mm512_packs_epi32(vtoint(v[4 * i + 2] * b), vtoint(v[4 * i + 3] * b));
    codes[i] = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
  }
  const vi sums = run_sums(codes);
  vi floats[2], integers[2];
  block_ends<0>(scales, sums, floats[0], integers[0]);
  block_ends<1>(scales, sums, floats[1], integers[1]);
  // Codes, floats and integers of a block as one line.
  const vi even = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
           odd = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const vi ends = _mm512_permutex2var_epi64(floats[i / 2], i % 2 ? odd : even, integers[i / 2]);
    if (2 * i < count) _mm512_storeu_si512(out + 2 * i * stride, _mm512_shuffle_i64x2(codes[i], ends, 0x44));
    if (2 * i + 1 < count)
      _mm512_storeu_si512(out + (2 * i + 1) * stride, _mm512_shuffle_i64x2(codes[i], ends, 0xee));
  }
  return true;
}

}  // namespace
}  // namespace ktc::kernels
