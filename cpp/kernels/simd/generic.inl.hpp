// Vectors of 4 floats in portable C++ (SSE2 on x86-64), for sources compiled for the platform's baseline.
//
// The three headers of this folder define the same names for their instruction set, in an anonymous namespace
// so that no symbol is shared between levels. A vector spans kWidth rows of a packed band, so a band takes
// kParts of them.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace ktc::kernels {
namespace {

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint16_t vb __attribute__((vector_size(16)));  // 16 bytes; the lanes matter only to shifts
constexpr int kWidth = 4;
constexpr int kParts = 16 / kWidth;

inline vf vzero() {
  return vf{};
}
inline vf vset(float x) {
  return vf{x, x, x, x};
}
inline vf vload(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void vstore(float* p, vf v) {
  std::memcpy(p, &v, sizeof v);
}
inline vf vload_n(const float* p, int n) {
  vf v{};
  std::memcpy(&v, p, sizeof(float) * static_cast<size_t>(n));
  return v;
}
inline void vstore_n(float* p, vf v, int n) {
  std::memcpy(p, &v, sizeof(float) * static_cast<size_t>(n));
}
inline vf vfma(vf a, vf b, vf c) {
  return a * b + c;
}
inline vf vmax(vf a, vf b) {
  return a > b ? a : b;
}
inline vf vmin(vf a, vf b) {
  return a < b ? a : b;
}
inline vf vabs(vf a) {
  return (vf)((vi)a & 0x7fffffff);
}
inline vf vcopysign(vf magnitude, vf sign) {
  return (vf)(((vi)magnitude & 0x7fffffff) | ((vi)sign & static_cast<int32_t>(0x80000000)));
}
inline vf vsqrt(vf a) {
  for (int i = 0; i < kWidth; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
inline float vsum(vf a) {
  return (a[0] + a[1]) + (a[2] + a[3]);
}
inline float vhighest(vf a) {
  const float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
  return x > y ? x : y;
}
// To nearest, ties to even, for |a| < 2^22.
inline vf vround(vf a) {
  const vf magic = vset(12582912.0f);
  return (a + magic) - magic;
}
inline vi vtoint(vf a) {
  return __builtin_convertvector(a, vi);
}
inline vf vtofloat(vi a) {
  return __builtin_convertvector(a, vf);
}
// a * 2^n for whole n in [-126, 127].
inline vf vscale2(vf a, vf n) {
  return a * (vf)((vtoint(n) + 127) << 23);
}
// a where x < limit, else b.
inline vf vselect_less(vf x, vf limit, vf a, vf b) {
  return x < limit ? a : b;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, magnitude = h & 0x7fff;
  uint32_t bits;
  if (magnitude >= 0x7c00) {
    bits = 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else {
    // The half's bits as a float are 2^112 too small, subnormals included.
    float value;
    bits = magnitude << 13;
    std::memcpy(&value, &bits, 4);
    value *= 5.192296858534828e33f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline uint16_t float_to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (bits < 0x38800000) {  // subnormal: let the adder round at 2^-24
    float value;
    std::memcpy(&value, &bits, 4);
    value += 0.5f;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000));
  }
  bits += 0xc8000fff + (bits >> 13 & 1);
  return static_cast<uint16_t>(sign | bits >> 13);
}
inline uint16_t float_to_bfloat(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline vf vload_half(const uint16_t* p) {
  return vf{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
}
// The bits of an e4m3 number as a float16, which is 2^8 times smaller.
inline uint16_t fp8_as_half(uint8_t code) {
  return static_cast<uint16_t>((code & 0x80) << 8 | (code & 0x7f) << 7);
}
inline vf vload_fp8(const uint8_t* p) {
  return vf{half_to_float(fp8_as_half(p[0])), half_to_float(fp8_as_half(p[1])),
            half_to_float(fp8_as_half(p[2])), half_to_float(fp8_as_half(p[3]))};
}
inline void vstore_half(uint16_t* p, vf v) {
  for (int i = 0; i < kWidth; ++i) p[i] = float_to_half(v[i]);
}
inline vf vload_bfloat(const uint16_t* p) {
  vi bits;
  for (int i = 0; i < kWidth; ++i) bits[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
  return (vf)bits;
}
inline void vstore_bfloat(uint16_t* p, vf v) {
  for (int i = 0; i < kWidth; ++i) p[i] = float_to_bfloat(v[i]);
}
// Pairs (even, odd) of bfloat16 in dwords.
inline void vload_bfloat_pairs(const uint8_t* p, vf& even, vf& odd) {
  vi bits;
  std::memcpy(&bits, p, sizeof bits);
  even = (vf)(bits << 16);
  odd = (vf)(bits & static_cast<int32_t>(0xffff0000));
}
inline vf vload_u8(const uint8_t* p) {
  return vf{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
}
inline vf vload_s8(const uint8_t* p) {
  vf v;
  for (int i = 0; i < kWidth; ++i) v[i] = static_cast<float>(static_cast<int8_t>(p[i]));
  return v;
}
// Low and high nibbles of bytes.
inline vf vload_low(const uint8_t* p) {
  return vf{float(p[0] & 15), float(p[1] & 15), float(p[2] & 15), float(p[3] & 15)};
}
inline vf vload_high(const uint8_t* p) {
  return vf{float(p[0] >> 4), float(p[1] >> 4), float(p[2] >> 4), float(p[3] >> 4)};
}
// 2^(e - 128), the scale of MXFP4's doubled values; e < 2 gives subnormals.
inline vf vload_exponent(const uint8_t* p) {
  vi bits;
  for (int i = 0; i < kWidth; ++i) bits[i] = p[i] < 2 ? 0x00200000 << p[i] : (p[i] - 1) << 23;
  return (vf)bits;
}
// Rounds to nearest even and stores as int8; |v| <= 127.
inline void vstore_s8(int8_t* p, vf v) {
  const vi q = vtoint(vround(v));
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<int8_t>(q[i]);
}
inline int32_t vsum_s8(const int8_t* p) {
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += p[i];
  return sum;
}
inline bool vfinite(vf a) {
  const vf zero_or_nan = a * vzero();
  return zero_or_nan[0] + zero_or_nan[1] + zero_or_nan[2] + zero_or_nan[3] == 0;
}

// Codes: bytes of kWidth rows x 4 columns.
inline vb bload(const uint8_t* p) {
  vb v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void bstore(uint8_t* p, vb v) {
  std::memcpy(p, &v, sizeof v);
}
inline vb bset(int byte) {
  const uint16_t word = static_cast<uint16_t>(byte | byte << 8);
  return vb{word, word, word, word, word, word, word, word};
}
template <int kShift>
inline vb bshift(vb v) {  // right by kShift, left when negative; bits cross bytes, mask afterwards
  if constexpr (kShift >= 0) return v >> kShift;
  return v << -kShift;
}
inline vb band(vb a, vb b) {
  return a & b;
}
inline vb bmerge(vb codes, vb bits, vb mask) {
  return codes | (bits & mask);
}
inline vb blookup(vb codes, const uint8_t* table) {
  uint8_t bytes[16];
  std::memcpy(bytes, &codes, 16);
  for (uint8_t& byte : bytes) byte = table[byte];
  return bload(bytes);
}

// Integer dot products: kGroup products of a line may be summed in a `vp` before widening.
using vp = vi;
constexpr int dot_group(int) {
  return 8;
}
constexpr bool kSignedBytes = false;
inline vi vseti(int32_t x) {
  return vi{x, x, x, x};
}
template <int kShift>
inline vi vshl(vi a) {
  return a << kShift;
}
inline vb bbroadcast(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return (vb)vseti(word);
}
// Whether a dot product's sum needs no widening, so that it can start anywhere.
constexpr bool kDirect = true;
constexpr int kPanelTokens = 2;
inline vi vaddi(vi a, vi b) {
  return a + b;
}
inline vi vshlv(vi a, int shift) {
  return a << shift;
}
#ifdef __SSE2__
inline vp dot(vp sum, vb codes, vb x) {
  const __m128i u = (__m128i)codes, v = (__m128i)x, zero = _mm_setzero_si128(),
                sign = _mm_cmpgt_epi8(zero, v);
  const __m128i low = _mm_madd_epi16(_mm_unpacklo_epi8(u, zero), _mm_unpacklo_epi8(v, sign));
  const __m128i high = _mm_madd_epi16(_mm_unpackhi_epi8(u, zero), _mm_unpackhi_epi8(v, sign));
  const __m128 a = _mm_castsi128_ps(low), b = _mm_castsi128_ps(high);
  const __m128i even = _mm_castps_si128(_mm_shuffle_ps(a, b, 0x88)),
                odd = _mm_castps_si128(_mm_shuffle_ps(a, b, 0xdd));
  return sum + (vi)_mm_add_epi32(even, odd);
}
#else
__attribute__((noinline)) vp dot(vp sum, vb codes, vb x) {
  uint8_t u[16];
  int8_t s[16];
  std::memcpy(u, &codes, 16);
  std::memcpy(s, &x, 16);
  for (int i = 0; i < kWidth; ++i) {
    int32_t total = 0;
    for (int j = 0; j < 4; ++j) total += int32_t{u[4 * i + j]} * s[4 * i + j];
    sum[i] += total;
  }
  return sum;
}
#endif
inline vp dot_signed(vp sum, vb codes, vb x) {
  return dot(sum, codes, x);
}
inline vi widen(vp sum) {
  return sum;
}

}  // namespace
}  // namespace ktc::kernels
