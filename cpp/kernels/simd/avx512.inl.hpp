// Vectors of 16 floats for sources compiled for AVX-512 (F, BW, VL, DQ); the names are those of
// generic.inl.hpp. Integer dot products exist where VNNI is compiled for.
#pragma once

// GCC 12 takes the undefined operands inside its own intrinsics for uninitialised variables of ours.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "kernels/simd/sums_x86.inl.hpp"

namespace ktc::kernels {
namespace {

using vf = __m512;
using vi = __m512i;
using vb = __m512i;
constexpr int kWidth = 16;
constexpr int kParts = 16 / kWidth;

inline __mmask16 tail_mask(int n) {
  return static_cast<__mmask16>((1u << n) - 1);
}

inline vf vzero() {
  return _mm512_setzero_ps();
}
inline vf vset(float x) {
  return _mm512_set1_ps(x);
}
inline vf vload(const float* p) {
  return _mm512_loadu_ps(p);
}
inline void vstore(float* p, vf v) {
  _mm512_storeu_ps(p, v);
}
inline vf vload_n(const float* p, int n) {
  return _mm512_maskz_loadu_ps(tail_mask(n), p);
}
inline void vstore_n(float* p, vf v, int n) {
  _mm512_mask_storeu_ps(p, tail_mask(n), v);
}
inline vf vfma(vf a, vf b, vf c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline vf vmax(vf a, vf b) {
  return _mm512_max_ps(a, b);
}
inline vf vmin(vf a, vf b) {
  return _mm512_min_ps(a, b);
}
inline vf vabs(vf a) {
  return _mm512_abs_ps(a);
}
inline vf vcopysign(vf magnitude, vf sign) {
  const vi mask = _mm512_set1_epi32(0x7fffffff);  // ternary: mask ? magnitude : sign
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(mask, _mm512_castps_si512(magnitude), _mm512_castps_si512(sign), 0xca));
}
inline vf vsqrt(vf a) {
  return _mm512_sqrt_ps(a);
}
inline float vsum(vf a) {
  return _mm512_reduce_add_ps(a);
}
inline float vhighest(vf a) {
  return _mm512_reduce_max_ps(a);
}
inline vf vround(vf a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline vi vtoint(vf a) {
  return _mm512_cvtps_epi32(a);
}
inline vf vtofloat(vi a) {
  return _mm512_cvtepi32_ps(a);
}
inline vf vscale2(vf a, vf n) {
  return _mm512_scalef_ps(a, n);
}
inline vf vselect_less(vf x, vf limit, vf a, vf b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), b, a);
}

inline vf vload_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// e4m3 numbers, 2^8 times smaller: their bits as float16. Extending the sign sets bit 14 too.
inline vf vload_fp8(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_cvtph_ps(
      _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbfff))));
}
inline void vstore_half(uint16_t* p, vf v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline vf vload_bfloat(const uint16_t* p) {
  const vi wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void vstore_bfloat(uint16_t* p, vf v) {
  const vi bits = _mm512_castps_si512(v);
  const vi odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const vi rounded =
      _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const vi quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const vi result = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), rounded, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(result));
}
inline void vload_bfloat_pairs(const uint8_t* p, vf& even, vf& odd) {
  const vi bits = _mm512_loadu_si512(p);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
}
inline vf vload_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline vf vload_s8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline vi vload_bytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline vf vload_low(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(vload_bytes(p), _mm512_set1_epi32(15)));
}
inline vf vload_high(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_srli_epi32(vload_bytes(p), 4));
}
inline vf vload_exponent(const uint8_t* p) {
  const vi e = vload_bytes(p);
  const vi normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
  const vi small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
  return _mm512_castsi512_ps(
      _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)), normal, small));
}
inline void vstore_s8(int8_t* p, vf v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}
inline bool vfinite(vf a) {
  return _mm512_fpclass_ps_mask(a, 0x99) == 0;  // no NaN of either kind, no infinity of either sign
}

inline vb bload(const uint8_t* p) {
  return _mm512_loadu_si512(p);
}
inline void bstore(uint8_t* p, vb v) {
  _mm512_storeu_si512(p, v);
}
inline vb bset(int byte) {
  return _mm512_set1_epi8(static_cast<char>(byte));
}
template <int kShift>
inline vb bshift(vb v) {
  if constexpr (kShift >= 0) {
    return _mm512_srli_epi16(v, kShift);
  } else {
    return _mm512_slli_epi16(v, -kShift);
  }
}
inline vb band(vb a, vb b) {
  return _mm512_and_si512(a, b);
}
inline vb bmerge(vb codes, vb bits, vb mask) {
  return _mm512_ternarylogic_epi32(codes, bits, mask, 0xf8);
}
inline vb blookup(vb codes, const uint8_t* table) {
  const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(row), codes);
}

inline vi vseti(int32_t x) {
  return _mm512_set1_epi32(x);
}
template <int kShift>
inline vi vshl(vi a) {
  return _mm512_slli_epi32(a, kShift);
}
#ifdef __AVX512VNNI__
using vp = __m512i;
constexpr int dot_group(int) {
  return 8;
}
constexpr bool kSignedBytes = false;
inline vb bbroadcast(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}
constexpr bool kDirect = true;
constexpr int kPanelTokens = 6;
inline vi vaddi(vi a, vi b) {
  return _mm512_add_epi32(a, b);
}
inline vi vshlv(vi a, int shift) {
  return _mm512_sll_epi32(a, _mm_cvtsi32_si128(shift));
}
inline vp dot(vp sum, vb codes, vb x) {
  return _mm512_dpbusd_epi32(sum, codes, x);
}
inline vp dot_signed(vp sum, vb codes, vb x) {
  return dot(sum, codes, x);
}
inline vi widen(vp sum) {
  return sum;
}
#endif

}  // namespace
}  // namespace ktc::kernels
