// The measured loops for AVX-512 VNNI and BF16.
#include "limits/loops_avx512.inl.hpp"

namespace ktc::limits {
namespace {

double int8(int64_t rounds) {
  __m512i sums[kAccumulators];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  __m512i x = _mm512_set1_epi8(3);
  const __m512i y = _mm512_set1_epi8(2);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], x, y);
  }
  for (auto& sum : sums) asm volatile("" : : "v"(sum));
  return static_cast<double>(rounds) * kAccumulators * 64 * 2;
}

double bf16(int64_t rounds) {
  __m512 sums[kAccumulators];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  __m512i x = _mm512_set1_epi16(0x3f80);
  const auto y = (__m512bh)_mm512_set1_epi16(0x3000);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)x, y);
  }
  for (auto& sum : sums) asm volatile("" : : "v"(sum));
  return static_cast<double>(rounds) * kAccumulators * 32 * 2;
}

}  // namespace

extern const Loops loops_avx512vnni;
const Loops loops_avx512vnni = {read<Lanes>, int8, bf16, f32};

}  // namespace ktc::limits
