// Linear kernels of bf16 and fp8 weights for many tokens on vdpbf16ps: activations are rounded to bf16, two
// products of bf16 are added to a float32 at once. The instruction takes denormal numbers for 0 and rounds to
// nearest. Rounding activations costs an NMSE of 3e-6 on Gaussian data, a tenth of what int8 blocks cost.
#pragma once

#include "kernels/linear/fp8_lines.inl.hpp"
#include "kernels/linear/rounded.hpp"
#include "kernels/linear/rows.inl.hpp"

namespace ktc::kernels {
namespace {

// A block of sums: two vectors of rows times so many tokens at most.
constexpr int kRoundedTokens = 12;
// What goes through a panel of bands at once. Sums and rounded tokens have places of their own: the rows of a
// result often lie a power of two apart, where caches hold few of them.
constexpr int kRoundedRun = 8 * kRoundedTokens;
constexpr int64_t kRoundedValues = 12 << 10;  // of activations, in L1 beside the lines of two bands
static_assert(kRoundedRun * kFp8Columns == kRoundedValues);
constexpr int64_t kLineBytes = 64;  // 16 rows of two columns

inline void round_columns(const float* x, int64_t columns, uint8_t* out) {
  for (int64_t i = 0; i < columns; i += 32)
    _mm512_storeu_si512(out + 2 * i, (__m512i)_mm512_cvtne2ps_pbh(vload(x + i + 16), vload(x + i)));
}

// 128 columns of a band of fp8 codes, without their scale, as lines.
inline void open_fp8(const uint8_t* codes, uint8_t* out) {
  const Fp8Opener opener;
  for (int i = 0; i < kFp8Columns / 4; ++i) {
    __m512i line0, line1;
    opener.open(codes + i * kLineBytes, line0, line1);
    _mm512_store_si512(out + 2 * i * kLineBytes, line0);
    _mm512_store_si512(out + (2 * i + 1) * kLineBytes, line1);
  }
}

// Lines of two bands, the scales of their rows for fp8, and what comes after: as many bytes a line from
// `next` on as keep memory busy all the time, since a band is long enough to be read at speed and no longer.
struct Lines {
  const uint8_t *of[2], *next[2];
  const float* scales[2];
  int64_t count, next_step;
};

// sum += lines of two bands times as many pairs of columns of kTokens tokens, `stride` bytes apart.
template <Format kFormat, int kTokens>
inline void dot_pairs(const Lines& lines, const uint8_t* x, int64_t stride, vf (&sum)[2][kTokens]) {
  const uint8_t *band0 = lines.of[0], *band1 = lines.of[1];
  const uint8_t *next0 = lines.next[0], *next1 = lines.next[1];
  for (int64_t i = 0; i < lines.count; ++i) {
    __builtin_prefetch(next0, 0, 2);
    __builtin_prefetch(next1, 0, 2);
    next0 += lines.next_step;
    next1 += lines.next_step;
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

// Adds to the sums of kTokens tokens, [token][2][16 rows].
template <Format kFormat, int kTokens>
void rounded_block(const Lines& lines, const uint8_t* x, int64_t stride, float* sums) {
  vf sum[2][kTokens];
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    sum[0][m] = kFormat == Format::fp8 ? vzero() : vload(sums + 32 * m);
    sum[1][m] = kFormat == Format::fp8 ? vzero() : vload(sums + 32 * m + 16);
  }
  dot_pairs<kFormat, kTokens>(lines, x, stride, sum);
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
using RoundedBlock = void (*)(const Lines& lines, const uint8_t* x, int64_t stride, float* sums);
template <Format kFormat>
constexpr RoundedBlock<kFormat> kRoundedBlocks[kRoundedTokens] = {
    rounded_block<kFormat, 1>,  rounded_block<kFormat, 2>,  rounded_block<kFormat, 3>,
    rounded_block<kFormat, 4>,  rounded_block<kFormat, 5>,  rounded_block<kFormat, 6>,
    rounded_block<kFormat, 7>,  rounded_block<kFormat, 8>,  rounded_block<kFormat, 9>,
    rounded_block<kFormat, 10>, rounded_block<kFormat, 11>, rounded_block<kFormat, 12>};

inline const float* floats_of(const LinearCall& call, int64_t token) {
  const int64_t index = call.order ? call.order[token] : token;
  return reinterpret_cast<const float*>(call.x + index * call.x_stride);
}

// Tokens [first, last), at most kRoundedRun, for at most kRoundedBands bands from `panel` on; what is read
// next begins at `after`.
template <Format kFormat>
void rounded_run(const LinearCall& call, int64_t panel, int bands, int64_t rows, int64_t first, int64_t last,
                 const uint8_t* after) {
  constexpr bool fp8 = kFormat == Format::fp8;
  alignas(64) float sums[kRoundedBands / 2][kRoundedRun][32];
  alignas(64) uint8_t x[2 * kRoundedValues];
  alignas(64) uint8_t opened[fp8 ? 2 : 1][kFp8Columns / 2 * kLineBytes];
  const int count = static_cast<int>(last - first), pairs = (bands + 1) / 2;
  const int groups = (count + kRoundedTokens - 1) / kRoundedTokens;
  for (int pair = 0; pair < pairs; ++pair) {
    const int64_t row = (panel + 2 * pair) * kBandRows;
    for (int part = 0; part < 2; ++part) {
      const vf bias = call.bias ? load_rows(call.bias, row + part * kWidth, rows) : vzero();
      for (int m = 0; m < count; ++m) vstore(sums[pair][m] + part * kWidth, bias);
    }
  }
  // Few tokens take long runs of the weights, as memory likes it: parts of about the same length.
  constexpr int64_t unit = fp8 ? kFp8Columns : 32;  // what columns are a multiple of
  const int64_t units = call.columns / unit, most = fp8 ? 1 : kRoundedValues / count / unit;
  const int64_t parts = (units + most - 1) / most;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t column = units * part / parts * unit, columns = units * (part + 1) / parts * unit - column;
    for (int m = 0; m < count; ++m)
      round_columns(floats_of(call, first + m) + column, columns, x + m * 2 * columns);
    // The next columns of the tokens, a share with each pair of bands.
    const int64_t left = call.columns - column - columns, ahead = left < columns ? left : columns;
    const int64_t share = (ahead / 16 + pairs - 1) / pairs * 16;
    for (int pair = 0; pair < pairs; ++pair) {
      Lines lines{};
      lines.count = columns / 2;
      lines.next_step = ((fp8 ? kFp8Bytes / lines.count : kLineBytes) + groups) / groups;
      for (int i = 0; i < 2; ++i) {
        const int index = 2 * pair + i < bands ? 2 * pair + i : 2 * pair;  // else its rows do not exist
        const uint8_t* band = call.weight + (panel + index) * call.band_stride;
        if constexpr (fp8) {
          const uint8_t* piece = band + part * kFp8Bytes;
          lines.scales[i] = reinterpret_cast<const float*>(piece);
          open_fp8(piece + 4 * kBandRows, opened[i]);
          lines.next[i] = part + 1 < parts ? piece + kFp8Bytes : after + index * call.band_stride;
          lines.of[i] = opened[i];
        } else {
          lines.of[i] = band + column / 2 * kLineBytes;
          const bool same = pair + 1 < pairs;
          const int64_t at = (same ? column : left > 0 ? column + columns : 0) / 2 * kLineBytes;
          const uint8_t* from =
              same || left > 0 ? call.weight + (panel + (same ? 2 * pair + 2 : 0)) * call.band_stride : after;
          lines.next[i] = from + i * call.band_stride + at;
        }
      }
      for (int group = 0; group < groups; ++group) {
        const int m = count * group / groups, tokens = count * (group + 1) / groups - m;
        const int64_t begin = pair * share, end = begin + share < ahead ? begin + share : ahead;
        for (int i = m; i < m + tokens; ++i) {
          const float* next = floats_of(call, first + i) + column + columns;
          for (int64_t at = begin; at < end; at += 16) __builtin_prefetch(next + at, 0, 2);
        }
        kRoundedBlocks<kFormat>[tokens - 1](lines, x + 2 * m* columns, 2 * columns, sums[pair][m]);
        for (const uint8_t*& next : lines.next) next += lines.count * lines.next_step;
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
    const uint8_t* own = call.weight + panel * call.band_stride;
    const uint8_t* behind = panel + bands < end || !call.after ? own + bands * call.band_stride : call.after;
    for (int64_t token = first; token < last; token += kRoundedRun) {
      const int64_t stop = last - token < kRoundedRun ? last : token + kRoundedRun;
      rounded_run<kFormat>(call, panel, bands, rows, token, stop, stop < last ? own : behind);
    }
  }
}

}  // namespace
}  // namespace ktc::kernels
