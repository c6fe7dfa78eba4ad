// The measured loops that every AVX-512 level shares; for sources with a suffix only.
#pragma once

#include <immintrin.h>

#include "limits/loops_read.inl.hpp"
#include "limits/tables.hpp"

namespace ktc::limits {
namespace {

constexpr int kAccumulators = 16;

struct Lanes {
  static constexpr size_t kBytes = 128;
  using Sum = __m512i;
  static Sum add(Sum sum, const uint8_t* place) {
    sum = _mm512_add_epi64(sum, _mm512_loadu_si512(place));
    return _mm512_add_epi64(sum, _mm512_loadu_si512(place + 64));
  }
  // Not _mm512_reduce_add_epi64, whose numbers have signs and may not overflow.
  static uint64_t total(Sum sum) {
    alignas(64) uint64_t lanes[8];
    _mm512_store_si512(lanes, sum);
    uint64_t all = 0;
    for (uint64_t lane : lanes) all += lane;
    return all;
  }
};

double f32(int64_t rounds) {
  __m512 sums[kAccumulators];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  __m512 x = _mm512_set1_ps(1e-9F);
  const __m512 y = _mm512_set1_ps(0.5F);
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) sums[i] = _mm512_fmadd_ps(x, y, sums[i]);
  }
  for (auto& sum : sums) asm volatile("" : : "v"(sum));
  return static_cast<double>(rounds) * kAccumulators * 16 * 2;
}

}  // namespace
}  // namespace ktc::limits
