// Codes of fp8 weights as bf16 numbers, 256 times smaller than what they mean (packed/format.hpp), by AVX-512
// VBMI: the two bytes of a number come from tables of 128 entries. Exact.
#pragma once

#include "kernels/packed/format.hpp"

namespace ktc::kernels {
namespace {

struct Fp8Table {
  alignas(64) uint8_t low[128], high[128];
};

constexpr Fp8Table make_fp8_table() {
  Fp8Table table{};
  for (int code = 0; code < 128; ++code) {
    int bits = (code << 4) + ((127 - 7 - 8) << 7);
    if (code == 0) bits = 0;
    if (code > 0 && code < 8) {  // so many times 2^-17
      int exponent = 127 - 17, value = code;
      while (value >= 2 << (exponent - (127 - 17))) ++exponent;
      bits = (exponent << 7) + ((value << (7 - (exponent - (127 - 17)))) & 0x7f);
    }
    table.low[code] = static_cast<uint8_t>(bits & 0xff);
    table.high[code] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}
constexpr Fp8Table kFp8Table = make_fp8_table();

// Where the bytes of two lines come from, of four columns of 16 rows: unpacking within 128 bits then makes
// pairs of columns.
struct Fp8Order {
  alignas(64) uint8_t of[64];
};
constexpr Fp8Order make_fp8_order() {
  Fp8Order order{};
  for (int i = 0; i < 64; ++i) {
    const int row = i / 16 * 4 + i % 8 / 2, column = i % 16 / 8 * 2 + i % 2;
    order.of[i] = static_cast<uint8_t>(column * kBandRows + row);
  }
  return order;
}
constexpr Fp8Order kFp8Order = make_fp8_order();

// A line of bf16: 16 rows of two columns, the even one in the lower halves.
struct Fp8Opener {
  __m512i order = _mm512_load_si512(kFp8Order.of);
  __m512i low0 = _mm512_load_si512(kFp8Table.low), low1 = _mm512_load_si512(kFp8Table.low + 64);
  __m512i high0 = _mm512_load_si512(kFp8Table.high), high1 = _mm512_load_si512(kFp8Table.high + 64);

  // 16 rows of four columns, one column after the other.
  void open(const uint8_t* codes, __m512i& line0, __m512i& line1) const {
    const __m512i code = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(codes));
    const __m512i low = _mm512_permutex2var_epi8(low0, code, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, code, high1);
    // magnitude | (code & 0x80)
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, code, _mm512_set1_epi8(-128), 0xf8);
    line0 = _mm512_unpacklo_epi8(low, high);
    line1 = _mm512_unpackhi_epi8(low, high);
  }
};

}  // namespace
}  // namespace ktc::kernels
