// Sums of bytes by SSE, the same for vectors of AVX2 and of AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace ktc::kernels {
namespace {

// Of 16 signed bytes: as unsigned ones raised by 128, whose sums one instruction takes.
inline int32_t vsum_s8(const int8_t* p) {
  const __m128i raised =
      _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), _mm_set1_epi8(-128));
  const __m128i sums = _mm_sad_epu8(raised, _mm_setzero_si128());
  return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
}

}  // namespace
}  // namespace ktc::kernels
