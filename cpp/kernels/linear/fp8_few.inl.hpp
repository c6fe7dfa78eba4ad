// fp8 weights for one or two tokens, whose activations stay floats: codes opened by tables
// (fp8_lines.inl.hpp) keep up with memory, where conversion through float16 does not.
#pragma once

#include "kernels/linear/fp8_lines.inl.hpp"
#include "kernels/linear/rows.inl.hpp"
#include "kernels/linear/tables.hpp"

namespace ktc::kernels {
namespace {

constexpr int64_t kFp8Ahead = 4096;  // bytes of a band asked for ahead

inline vf even_columns(__m512i line) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(line, 16));
}
inline vf odd_columns(__m512i line) {
  return _mm512_castsi512_ps(_mm512_and_si512(line, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
}

// A band times kTokens tokens, added to `sum`.
template <int kTokens>
inline void fp8_band(const uint8_t* band, const float* const (&x)[kTokens], int64_t columns,
                     vf (&sum)[kTokens]) {
  const Fp8Opener opener;
  for (int64_t first = 0; first < columns; first += kFp8Columns, band += kFp8Bytes) {
    vf part[kTokens][4];
    for (int m = 0; m < kTokens; ++m)
      for (vf& p : part[m]) p = vzero();
    const uint8_t* codes = band + 4 * kBandRows;
    __builtin_prefetch(band + kFp8Ahead);
    for (int64_t column = 0; column < kFp8Columns; column += 4, codes += 4 * kBandRows) {
      __builtin_prefetch(codes + kFp8Ahead);
      __m512i lines[2];
      opener.open(codes, lines[0], lines[1]);
      for (int line = 0; line < 2; ++line) {
        const vf even = even_columns(lines[line]), odd = odd_columns(lines[line]);
        for (int m = 0; m < kTokens; ++m) {
          const float* at = x[m] + first + column + 2 * line;
          part[m][2 * line] = vfma(even, vset(at[0]), part[m][2 * line]);
          part[m][2 * line + 1] = vfma(odd, vset(at[1]), part[m][2 * line + 1]);
        }
      }
    }
    const vf scale = vload(reinterpret_cast<const float*>(band));
    for (int m = 0; m < kTokens; ++m)
      sum[m] = vfma((part[m][0] + part[m][1]) + (part[m][2] + part[m][3]), scale, sum[m]);
  }
}

template <int kTokens>
void fp8_tokens(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t rows) {
  const float* x[kTokens];
  for (int m = 0; m < kTokens; ++m) {
    const int64_t index = call.order ? call.order[first + m] : first + m;
    x[m] = reinterpret_cast<const float*>(call.x + index * call.x_stride);
  }
  for (int64_t band = begin; band < end; ++band) {
    const int64_t row = band * kBandRows;
    vf sum[kTokens];
    for (vf& s : sum) s = call.bias ? load_rows(call.bias, row, rows) : vzero();
    fp8_band<kTokens>(call.weight + band * call.band_stride, x, call.columns, sum);
    for (int m = 0; m < kTokens; ++m) store_rows(call.y + (first + m) * call.y_stride, row, rows, sum[m]);
  }
}

// As FloatKernels::multiply.
void multiply_fp8_few(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last) {
  const int64_t rows = end * kBandRows < call.rows ? end * kBandRows : call.rows;
  for (int64_t token = first; token < last; token += 2) {
    if (last - token > 1) {
      fp8_tokens<2>(call, begin, end, token, rows);
    } else {
      fp8_tokens<1>(call, begin, end, token, rows);
    }
  }
}

}  // namespace
}  // namespace ktc::kernels
