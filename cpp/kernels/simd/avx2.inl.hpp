// Vectors of 8 floats for sources compiled for AVX2, FMA and F16C; the names are those of generic.inl.hpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/simd/sums_x86.inl.hpp"

namespace ktc::kernels {
namespace {

using vf = __m256;
using vi = __m256i;
using vb = __m256i;
constexpr int kWidth = 8;
constexpr int kParts = 16 / kWidth;

alignas(64) const int32_t kTailMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
inline __m256i tail_mask(int n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kTailMask + 8 - n));
}

inline vf vzero() {
  return _mm256_setzero_ps();
}
inline vf vset(float x) {
  return _mm256_set1_ps(x);
}
inline vf vload(const float* p) {
  return _mm256_loadu_ps(p);
}
inline void vstore(float* p, vf v) {
  _mm256_storeu_ps(p, v);
}
inline vf vload_n(const float* p, int n) {
  return _mm256_maskload_ps(p, tail_mask(n));
}
inline void vstore_n(float* p, vf v, int n) {
  _mm256_maskstore_ps(p, tail_mask(n), v);
}
inline vf vfma(vf a, vf b, vf c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline vf vmax(vf a, vf b) {
  return _mm256_max_ps(a, b);
}
inline vf vmin(vf a, vf b) {
  return _mm256_min_ps(a, b);
}
inline vf vabs(vf a) {
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
inline vf vcopysign(vf magnitude, vf sign) {
  const vf mask = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(mask, magnitude), _mm256_and_ps(mask, sign));
}
inline vf vsqrt(vf a) {
  return _mm256_sqrt_ps(a);
}
inline float vsum(vf a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
inline float vhighest(vf a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
inline vf vround(vf a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline vi vtoint(vf a) {
  return _mm256_cvtps_epi32(a);
}
inline vf vtofloat(vi a) {
  return _mm256_cvtepi32_ps(a);
}
inline vf vscale2(vf a, vf n) {
  const vi exponent = _mm256_slli_epi32(_mm256_add_epi32(vtoint(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
}
inline vf vselect_less(vf x, vf limit, vf a, vf b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OQ));
}

inline vf vload_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// e4m3 numbers, 2^8 times smaller: their bits as float16. Extending the sign sets bit 14 too.
inline vf vload_fp8(const uint8_t* p) {
  const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_cvtph_ps(
      _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<int16_t>(0xbfff))));
}
inline void vstore_half(uint16_t* p, vf v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline vf vload_bfloat(const uint16_t* p) {
  const vi wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline void vstore_bfloat(uint16_t* p, vf v) {
  const vi bits = _mm256_castps_si256(v);
  const vi odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  vi rounded =
      _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const vi quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const vi nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, quiet, nan);
  const vi packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x88);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void vload_bfloat_pairs(const uint8_t* p, vf& even, vf& odd) {
  const vi bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))));
}
inline vf vload_u8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline vf vload_s8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline vi vload_bytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline vf vload_low(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_and_si256(vload_bytes(p), _mm256_set1_epi32(15)));
}
inline vf vload_high(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_srli_epi32(vload_bytes(p), 4));
}
inline vf vload_exponent(const uint8_t* p) {
  const vi e = vload_bytes(p);
  const vi normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
  const vi small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
  return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}
inline void vstore_s8(int8_t* p, vf v) {
  const vi q = _mm256_cvtps_epi32(v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline bool vfinite(vf a) {
  const vf zero_or_nan = a * vzero();
  return _mm256_movemask_ps(_mm256_cmp_ps(zero_or_nan, zero_or_nan, _CMP_UNORD_Q)) == 0;
}

inline vb bload(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline void bstore(uint8_t* p, vb v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
inline vb bset(int byte) {
  return _mm256_set1_epi8(static_cast<char>(byte));
}
template <int kShift>
inline vb bshift(vb v) {
  if constexpr (kShift >= 0) {
    return _mm256_srli_epi16(v, kShift);
  } else {
    return _mm256_slli_epi16(v, -kShift);
  }
}
inline vb band(vb a, vb b) {
  return _mm256_and_si256(a, b);
}
inline vb bmerge(vb codes, vb bits, vb mask) {
  return _mm256_or_si256(codes, _mm256_and_si256(bits, mask));
}
inline vb blookup(vb codes, const uint8_t* table) {
  const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(row), codes);
}

// Two u8 x s8 products are summed in 16 bits by one instruction, which saturates: 2 * largest * 127 has to
// fit, and so have the sums of a group of lines.
using vp = __m256i;
constexpr int dot_group(int largest) {
  return largest <= 15 ? 8 : largest <= 31 ? 4 : largest <= 63 ? 2 : 1;
}
// Codes above 127 (those with offset 128) go through dot_signed, which takes the offset off itself.
constexpr bool kSignedBytes = true;
inline vi vseti(int32_t x) {
  return _mm256_set1_epi32(x);
}
template <int kShift>
inline vi vshl(vi a) {
  return _mm256_slli_epi32(a, kShift);
}
inline vb bbroadcast(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}
constexpr bool kDirect = false;
constexpr int kPanelTokens = 4;
inline vi vaddi(vi a, vi b) {
  return _mm256_add_epi32(a, b);
}
inline vi vshlv(vi a, int shift) {
  return _mm256_sll_epi32(a, _mm_cvtsi32_si128(shift));
}
inline vp dot(vp sum, vb codes, vb x) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
}
inline vp dot_signed(vp sum, vb codes, vb x) {
  const vb weight = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));
  // |-128| is 128 as u8, and x never is -128: the largest sum is 2 * 128 * 127 = 32512.
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(x, weight)));
}
inline vi widen(vp sum) {
  return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

}  // namespace
}  // namespace ktc::kernels
