// The measured loops that every AVX-512 level shares; for sources with a suffix only.
#pragma once

#include <immintrin.h>

#include "limits/tables.hpp"

namespace ktc::limits {
namespace {

constexpr int kAccumulators = 16;

template <int kStreams>
uint64_t read_from(const uint8_t* data, size_t bytes) {
  __m512i sums[kStreams];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  const size_t share = bytes / kStreams;
  for (size_t at = 0; at + 128 <= share; at += 128) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const uint8_t* place = data + static_cast<size_t>(s) * share + at;
      sums[s] = _mm512_add_epi64(sums[s], _mm512_loadu_si512(place));
      sums[s] = _mm512_add_epi64(sums[s], _mm512_loadu_si512(place + 64));
    }
  }
  for (int s = 1; s < kStreams; ++s) sums[0] = _mm512_add_epi64(sums[0], sums[s]);
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(sums[0]));
}

uint64_t read(const uint8_t* data, size_t bytes, int streams) {
  switch (streams) {
    case 1:
      return read_from<1>(data, bytes);
    case 2:
      return read_from<2>(data, bytes);
    case 4:
      return read_from<4>(data, bytes);
    default:
      return read_from<8>(data, bytes);
  }
}

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
