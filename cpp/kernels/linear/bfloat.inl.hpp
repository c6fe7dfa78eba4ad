// Linear kernels of bf16 and fp8 weights for many tokens on vdpbf16ps: activations are rounded to bf16, two
// products of bf16 are added to a float32 at once. The instruction takes denormal numbers for 0 and rounds to
// nearest. Rounding activations costs an NMSE of 3e-6 on Gaussian data, a tenth of what int8 blocks cost.
#pragma once

#include "kernels/linear/rounded.hpp"
#include "kernels/linear/rows.inl.hpp"

namespace ktc::kernels {
namespace {

// A block of sums: two vectors of rows times so many tokens.
constexpr int kRoundedTokens = 12;
// What goes through a panel of bands at once. Sums and rounded tokens have places of their own: the rows of a
// result often lie a power of two apart, where caches hold few of them.
constexpr int kRoundedRun = 8 * kRoundedTokens;
constexpr int64_t kRoundedValues = 12 << 10;  // of activations, in L1 beside the lines of two bands
static_assert(kRoundedRun * kFp8Columns == kRoundedValues);
constexpr int64_t kLineBytes = 64;   // 16 rows of two columns
constexpr int64_t kLinesAhead = 64;  // asked for while others are multiplied

inline void round_columns(const float* x, int64_t columns, uint8_t* out) {
  for (int64_t i = 0; i < columns; i += 32)
    _mm512_storeu_si512(out + 2 * i, (__m512i)_mm512_cvtne2ps_pbh(vload(x + i + 16), vload(x + i)));
}

// 128 columns of a band of fp8 codes, without their scale, as lines of pairs; both steps are exact.
inline void unpack_fp8(const uint8_t* codes, uint8_t* out) {
  alignas(64) static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i places = _mm512_load_si512(order);
  for (int column = 0; column < kFp8Columns; column += 2, codes += 2 * kBandRows, out += kLineBytes) {
    __builtin_prefetch(codes + 2 * kFp8Bytes);
    const __m512bh both = _mm512_cvtne2ps_pbh(vload_fp8(codes + kBandRows), vload_fp8(codes));
    _mm512_store_si512(out, _mm512_permutexvar_epi16(places, (__m512i)both));
  }
}

// sum += lines [0, lines) of two bands times as many pairs of columns of kTokens tokens, `stride` bytes
// apart.
template <int kTokens>
inline void dot_pairs(const uint8_t* band0, const uint8_t* band1, const uint8_t* x, int64_t stride,
                      int64_t lines, vf (&sum)[2][kTokens]) {
  for (int64_t i = 0; i < lines; ++i) {
    __builtin_prefetch(band0 + (i + kLinesAhead) * kLineBytes);
    __builtin_prefetch(band1 + (i + kLinesAhead) * kLineBytes);
    const __m512bh w0 = (__m512bh)_mm512_loadu_si512(band0 + i * kLineBytes);
    const __m512bh w1 = (__m512bh)_mm512_loadu_si512(band1 + i * kLineBytes);
#pragma GCC unroll 12
    for (int m = 0; m < kTokens; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, x + m * stride + 4 * i, 4);
      const __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
      sum[0][m] = _mm512_dpbf16_ps(sum[0][m], w0, v);
      sum[1][m] = _mm512_dpbf16_ps(sum[1][m], w1, v);
    }
  }
}

// The lines of two bands, and the scales of their rows for fp8.
struct Lines {
  const uint8_t* of[2];
  const float* scales[2];
  int64_t count;
};

// Adds to the sums of kTokens tokens, [token][2][16 rows].
template <Format kFormat, int kTokens>
void rounded_block(const Lines& lines, const uint8_t* x, int64_t stride, float* sums) {
  vf sum[2][kTokens];
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    sum[0][m] = kFormat == Format::fp8 ? vzero() : vload(sums + 32 * m);
    sum[1][m] = kFormat == Format::fp8 ? vzero() : vload(sums + 32 * m + 16);
  }
  dot_pairs<kTokens>(lines.of[0], lines.of[1], x, stride, lines.count, sum);
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    for (int band = 0; band < 2; ++band) {
      float* to = sums + 32 * m + 16 * band;
      if constexpr (kFormat == Format::fp8)
        sum[band][m] = vfma(sum[band][m], vload(lines.scales[band]), vload(to));
      vstore(to, sum[band][m]);
    }
  }
}

template <Format kFormat>
inline void rounded_group(int tokens, const Lines& lines, const uint8_t* x, int64_t stride, float* sums) {
  switch (tokens) {
    case 1:
      return rounded_block<kFormat, 1>(lines, x, stride, sums);
    case 2:
      return rounded_block<kFormat, 2>(lines, x, stride, sums);
    case 3:
      return rounded_block<kFormat, 3>(lines, x, stride, sums);
    case 4:
      return rounded_block<kFormat, 4>(lines, x, stride, sums);
    case 6:
      return rounded_block<kFormat, 6>(lines, x, stride, sums);
    case 8:
      return rounded_block<kFormat, 8>(lines, x, stride, sums);
    default:
      return rounded_block<kFormat, kRoundedTokens>(lines, x, stride, sums);
  }
}

inline const float* floats_of(const LinearCall& call, int64_t token) {
  const int64_t index = call.order ? call.order[token] : token;
  return reinterpret_cast<const float*>(call.x + index * call.x_stride);
}

// Of the sizes above, the largest that `left` tokens fill.
inline int rounded_tokens(int64_t left) {
  if (left >= kRoundedTokens) return kRoundedTokens;
  return left >= 8 ? 8 : left >= 6 ? 6 : left > 4 ? 4 : static_cast<int>(left);
}

// Tokens [first, last), at most kRoundedRun, for at most kRoundedBands bands from `panel` on.
template <Format kFormat>
void rounded_run(const LinearCall& call, int64_t panel, int bands, int64_t rows, int64_t first,
                 int64_t last) {
  constexpr bool fp8 = kFormat == Format::fp8;
  alignas(64) float sums[kRoundedBands / 2][kRoundedRun][32];
  alignas(64) uint8_t x[2 * kRoundedValues];
  alignas(64) uint8_t opened[fp8 ? kRoundedBands : 1][kFp8Columns / 2 * kLineBytes];
  const int count = static_cast<int>(last - first), pairs = (bands + 1) / 2;
  for (int pair = 0; pair < pairs; ++pair) {
    const int64_t row = (panel + 2 * pair) * kBandRows;
    for (int part = 0; part < 2; ++part) {
      const vf bias = call.bias ? load_rows(call.bias, row + part * kWidth, rows) : vzero();
      for (int m = 0; m < count; ++m) vstore(sums[pair][m] + part * kWidth, bias);
    }
  }
  // Few tokens take long runs of the weights, as memory likes it.
  const int64_t most = fp8 ? kFp8Columns : kRoundedValues / count / kFp8Columns * kFp8Columns;
  for (int64_t column = 0; column < call.columns; column += most) {
    const int64_t left = call.columns - column, columns = left < most ? left : most;
    for (int m = 0; m < count; ++m)
      round_columns(floats_of(call, first + m) + column, columns, x + m * 2 * columns);
    // The next columns of the tokens, a share with each pair of bands.
    const int64_t ahead = left - columns < columns ? left - columns : columns;
    const int64_t share = (ahead / 16 + pairs - 1) / pairs * 16;
    for (int pair = 0; pair < pairs; ++pair) {
      Lines lines{};
      lines.count = columns / 2;
      for (int part = 0; part < 2; ++part) {
        const int i = 2 * pair + part < bands ? 2 * pair + part : 2 * pair;  // else its rows do not exist
        const uint8_t* band = call.weight + (panel + i) * call.band_stride;
        if constexpr (fp8) {
          const uint8_t* piece = band + column / kFp8Columns * kFp8Bytes;
          lines.scales[part] = reinterpret_cast<const float*>(piece);
          unpack_fp8(piece + 4 * kBandRows, opened[i]);
          lines.of[part] = opened[i];
        } else {
          lines.of[part] = band + column / 2 * kLineBytes;
        }
      }
      int tokens;
      for (int m = 0; m < count; m += tokens) {
        tokens = rounded_tokens(count - m);
        const int64_t begin = pair * share, end = begin + share < ahead ? begin + share : ahead;
        for (int i = m; i < m + tokens; ++i) {
          const float* next = floats_of(call, first + i) + column + columns;
          for (int64_t at = begin; at < end; at += 16) __builtin_prefetch(next + at, 0, 2);
        }
        rounded_group<kFormat>(tokens, lines, x + m * 2 * columns, 2 * columns, sums[pair][m]);
      }
    }
  }
  for (int pair = 0; pair < pairs; ++pair) {
    const int64_t row = (panel + 2 * pair) * kBandRows;
    for (int m = 0; m < count; ++m) {
      float* y = call.y + (first + m) * call.y_stride;
      store_rows(y, row, rows, vload(sums[pair][m]));
      store_rows(y, row + kWidth, rows, vload(sums[pair][m] + kWidth));
    }
  }
}

template <Format kFormat>
void multiply_rounded(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last) {
  const int64_t rows = end * kBandRows < call.rows ? end * kBandRows : call.rows;
  for (int64_t panel = begin; panel < end; panel += kRoundedBands) {
    const int bands = static_cast<int>(end - panel < kRoundedBands ? end - panel : kRoundedBands);
    for (int64_t token = first; token < last; token += kRoundedRun) {
      const int64_t stop = last - token < kRoundedRun ? last : token + kRoundedRun;
      rounded_run<kFormat>(call, panel, bands, rows, token, stop);
    }
  }
}

}  // namespace
}  // namespace ktc::kernels
