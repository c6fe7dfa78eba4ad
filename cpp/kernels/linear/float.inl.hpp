// Linear kernels over packed float weights (f32, f16, bf16, fp8) with float activations, for the vectors of
// the simd/ header included before.
#pragma once

#include "kernels/linear/rows.inl.hpp"
#include "kernels/linear/tables.hpp"

namespace ktc::kernels {
namespace {

// Columns that one pass takes, so that the weights it reads stay in L2 for the next tokens.
constexpr int64_t kSliceColumns = 1024;
constexpr int kManyTokens = kWidth == 16 ? 12 : 4;

// kWidth rows of two columns, from the band's row `row` on.
template <Format kFormat>
inline void load_columns(const uint8_t* band, int64_t column, int64_t row, vf& even, vf& odd) {
  if constexpr (kFormat == Format::f32) {
    const float* p = reinterpret_cast<const float*>(band) + column * kBandRows + row;
    even = vload(p);
    odd = vload(p + kBandRows);
  } else if constexpr (kFormat == Format::f16) {
    const uint16_t* p = reinterpret_cast<const uint16_t*>(band) + column * kBandRows + row;
    even = vload_half(p);
    odd = vload_half(p + kBandRows);
  } else if constexpr (kFormat == Format::fp8) {
    const uint8_t* piece = band + column / kFp8Columns * kFp8Bytes;
    const vf scale = vload(reinterpret_cast<const float*>(piece) + row);
    const uint8_t* p = piece + (4 + column % kFp8Columns) * kBandRows + row;
    even = vload_fp8(p) * scale;
    odd = vload_fp8(p + kBandRows) * scale;
  } else {
    vload_bfloat_pairs(band + 2 * (column * kBandRows + 2 * row), even, odd);
  }
}

// Two vectors of rows (bands band0 and band1, from rows row0 and row1 on) times kTokens tokens over columns
// [begin, end).
template <Format kFormat, int kTokens>
inline void multiply(const uint8_t* band0, int64_t row0, const uint8_t* band1, int64_t row1,
                     const float* const (&x)[kTokens], int64_t begin, int64_t end, vf (&sum)[2][kTokens]) {
  for (int64_t column = begin; column < end; column += 2) {
    vf even0, odd0, even1, odd1;
    load_columns<kFormat>(band0, column, row0, even0, odd0);
    load_columns<kFormat>(band1, column, row1, even1, odd1);
#pragma GCC unroll 12
    for (int m = 0; m < kTokens; ++m) {
      const vf v = vset(x[m][column]);
      sum[0][m] = vfma(even0, v, sum[0][m]);
      sum[1][m] = vfma(even1, v, sum[1][m]);
    }
#pragma GCC unroll 12
    for (int m = 0; m < kTokens; ++m) {
      const vf v = vset(x[m][column + 1]);
      sum[0][m] = vfma(odd0, v, sum[0][m]);
      sum[1][m] = vfma(odd1, v, sum[1][m]);
    }
  }
}

// One token: 8 independent sums hide the latency of the additions.
template <Format kFormat>
inline vf multiply_one(const uint8_t* band, int64_t row, const float* x, int64_t columns, vf start) {
  vf sum[8] = {start, vzero(), vzero(), vzero(), vzero(), vzero(), vzero(), vzero()};
  constexpr int bytes = kFormat == Format::f32 ? 64 : kFormat == Format::fp8 ? 16 : 32;  // of one column
  for (int64_t column = 0; column < columns; column += 8) {
    const uint8_t* ahead = band + column * bytes + 4096;
#pragma GCC unroll 8
    for (int i = 0; i < 8 * bytes; i += 64) __builtin_prefetch(ahead + i);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      vf even, odd;
      load_columns<kFormat>(band, column + i, row, even, odd);
      sum[i] = vfma(even, vset(x[column + i]), sum[i]);
      sum[i + 1] = vfma(odd, vset(x[column + i + 1]), sum[i + 1]);
    }
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

inline const float* floats(const LinearCall& call, int64_t token) {
  const int64_t index = call.order ? call.order[token] : token;
  return reinterpret_cast<const float*>(call.x + index * call.x_stride);
}

template <Format kFormat, int kTokens>
void tokens_of(const LinearCall& call, int64_t row, int64_t other, int64_t rows, int64_t token, int64_t begin,
               int64_t end) {
  const uint8_t* band0 = call.weight + row / kBandRows * call.band_stride;
  const uint8_t* band1 = call.weight + other / kBandRows * call.band_stride;
  float* y = call.y + token * call.y_stride;
  const float* x[kTokens];
  vf sum[2][kTokens];
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    x[m] = floats(call, token + m);
    const float* from = begin > 0 ? y + m * call.y_stride : call.bias;
    sum[0][m] = from ? load_rows(from, row, rows) : vzero();
    sum[1][m] = from ? load_rows(from, row + kWidth, rows) : vzero();
  }
  multiply<kFormat, kTokens>(band0, row % kBandRows, band1, other % kBandRows, x, begin, end, sum);
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    store_rows(y + m * call.y_stride, row, rows, sum[0][m]);
    store_rows(y + m * call.y_stride, row + kWidth, rows, sum[1][m]);
  }
}

template <Format kFormat>
void multiply_floats(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last) {
  const int64_t rows = end * kBandRows < call.rows ? end * kBandRows : call.rows;
  if (last - first == 1) {
    const float* x = floats(call, first);
    for (int64_t row = begin * kBandRows; row < rows; row += kWidth) {
      const uint8_t* band = call.weight + row / kBandRows * call.band_stride;
      const vf start = call.bias ? load_rows(call.bias, row, rows) : vzero();
      store_rows(call.y + first * call.y_stride, row, rows,
                 multiply_one<kFormat>(band, row % kBandRows, x, call.columns, start));
    }
    return;
  }
  for (int64_t row = begin * kBandRows; row < rows; row += 2 * kWidth) {
    const int64_t other = row + kWidth < end * kBandRows ? row + kWidth : row;
    for (int64_t start = 0; start < call.columns; start += kSliceColumns) {
      const int64_t stop = start + kSliceColumns < call.columns ? start + kSliceColumns : call.columns;
      int64_t tokens;
      for (int64_t token = first; token < last; token += tokens) {
        const int64_t left = last - token;
        if (left >= kManyTokens) {
          tokens = kManyTokens;
          tokens_of<kFormat, kManyTokens>(call, row, other, rows, token, start, stop);
        } else if (left >= 4) {
          tokens = 4;
          tokens_of<kFormat, 4>(call, row, other, rows, token, start, stop);
        } else if (left >= 2) {
          tokens = 2;
          tokens_of<kFormat, 2>(call, row, other, rows, token, start, stop);
        } else {
          tokens = 1;
          tokens_of<kFormat, 1>(call, row, other, rows, token, start, stop);
        }
      }
    }
  }
}

#define KTC_EACH_FLOAT_FORMAT(kernel)                                                                 \
  kernel<Format::f32>, kernel<Format::f16>, kernel<Format::bf16>, nullptr, nullptr, nullptr, nullptr, \
      nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, kernel<Format::fp8>

}  // namespace
}  // namespace ktc::kernels
