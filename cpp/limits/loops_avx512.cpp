// The measured loops for AVX-512 without VNNI: byte dot products as on AVX2, twice as wide.
#include "limits/loops_avx512.inl.hpp"

namespace ktc::limits {
namespace {

double int8(int64_t rounds) {
  __m512i sums[kAccumulators];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  __m512i x = _mm512_set1_epi8(3);
  const __m512i y = _mm512_set1_epi8(2);
  const __m512i ones = _mm512_set1_epi16(1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) {
      asm volatile("" : "+v"(x));  // or the product is taken out of the loop
      sums[i] = _mm512_add_epi32(sums[i], _mm512_madd_epi16(_mm512_maddubs_epi16(x, y), ones));
    }
  }
  for (auto& sum : sums) asm volatile("" : : "v"(sum));
  return static_cast<double>(rounds) * kAccumulators * 64 * 2;
}

}  // namespace

extern const Loops loops_avx512;
const Loops loops_avx512 = {read<Lanes>, int8, nullptr, f32};

}  // namespace ktc::limits
