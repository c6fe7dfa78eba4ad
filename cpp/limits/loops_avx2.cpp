// The measured loops for AVX2: byte dot products are vpmaddubsw + vpmaddwd + vpaddd there.
#include <immintrin.h>

#include "limits/loops_read.inl.hpp"
#include "limits/tables.hpp"

namespace ktc::limits {
namespace {

constexpr int kAccumulators = 12;

struct Lanes {
  static constexpr size_t kBytes = 64;
  using Sum = __m256i;
  static Sum add(Sum sum, const uint8_t* place) {
    sum = _mm256_add_epi64(sum, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place)));
    return _mm256_add_epi64(sum, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place + 32)));
  }
  static uint64_t total(Sum sum) {
    alignas(32) uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
  }
};

double int8(int64_t rounds) {
  __m256i sums[kAccumulators];
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  __m256i x = _mm256_set1_epi8(3);
  const __m256i y = _mm256_set1_epi8(2);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) {
      asm volatile("" : "+x"(x));  // or the product is taken out of the loop
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
    }
  }
  for (auto& sum : sums) asm volatile("" : : "x"(sum));
  return static_cast<double>(rounds) * kAccumulators * 32 * 2;
}

double f32(int64_t rounds) {
  __m256 sums[kAccumulators];
  for (auto& sum : sums) sum = _mm256_setzero_ps();
  __m256 x = _mm256_set1_ps(1e-9F);
  const __m256 y = _mm256_set1_ps(0.5F);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+x"(x));
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm256_fmadd_ps(x, y, sums[i]);
  }
  for (auto& sum : sums) asm volatile("" : : "x"(sum));
  return static_cast<double>(rounds) * kAccumulators * 8 * 2;
}

}  // namespace

extern const Loops loops_avx2;
const Loops loops_avx2 = {read<Lanes>, int8, nullptr, f32};

}  // namespace ktc::limits
