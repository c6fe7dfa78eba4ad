// Integer linear kernels over packed weights, for the vectors of the simd/ header included before.
//
// A tile's integer dot product is exact; it starts from minus the codes' offset times the activations' sum,
// so that an offset costs nothing. Per tile and row: sum += (scale_w * scale_x) * float(dot) + min_w *
// (scale_x * sum_x).
#pragma once

#include "kernels/linear/activations.hpp"
#include "kernels/linear/quantize.inl.hpp"
#include "kernels/linear/rows.inl.hpp"
#include "kernels/linear/tables.hpp"
#include "kernels/packed/tile.inl.hpp"

namespace ktc::kernels {
namespace {

constexpr int smaller(int a, int b) {
  return a < b ? a : b;
}

inline float read_float(const uint8_t* p) {
  float value;
  __builtin_memcpy(&value, p, 4);
  return value;
}
inline int32_t read_int(const uint8_t* p) {
  int32_t value;
  __builtin_memcpy(&value, p, 4);
  return value;
}

// What the inner loops need to know of a format.
template <Format kFormat>
struct Traits {
  static constexpr Spec s = spec(kFormat);
  static constexpr int halves = 32 / scale_columns(s.scales);
  static constexpr bool min = has_min(s.scales);
  static constexpr bool offset_in_dot = kSignedBytes && s.offset_log2 == 7;
  static constexpr bool starts = s.offset_log2 >= 0 && !offset_in_dot;
  static constexpr int group = dot_group(s.largest);
};

template <bool kSigned>
inline vp dot_either(vp sum, vb codes, vb x) {
  if constexpr (kSigned) return dot_signed(sum, codes, x);
  return dot(sum, codes, x);
}

// Where the sums of a token's half tile lie.
template <int kHalves>
inline int64_t sum_place(int64_t plane32, int64_t plane16, int64_t tile, int half) {
  return kHalves == 1 ? plane32 + 4 * tile : plane16 + 8 * tile + 4 * half;
}

// ---- Few tokens: decode a tile, multiply it with the blocks of up to kDirectGroup tokens.

constexpr int kDirectGroup = kWidth == 16 ? 8 : 4;

template <Format kFormat, int kTokens>
void direct_tokens(const LinearCall& call, int64_t begin, int64_t end, int64_t first) {
  using T = Traits<kFormat>;
  constexpr int lines_a_half = 8 / T::halves, group_lines = smaller(T::group, lines_a_half);
  constexpr int bytes = tile_bytes(T::s), halves = T::halves;
  const ActivationPlanes planes = activation_planes(call.columns);
  const uint8_t* x = call.x + first * call.x_stride;
  for (int64_t band = begin; band < end; ++band) {
    vf sum[kParts][kTokens];
    for (int part = 0; part < kParts; ++part) {
      const int64_t row = band * kBandRows + part * kWidth;
      for (int m = 0; m < kTokens; ++m)
        sum[part][m] = call.bias ? load_rows(call.bias, row, call.rows) : vzero();
    }
    const uint8_t* header = call.weight + band * call.band_stride;
    const int64_t all = call.columns / kTileColumns;
    for (int64_t start = 0; start < all; start += kChunkTiles) {
      const int tiles = static_cast<int>(all - start < kChunkTiles ? all - start : kChunkTiles);
      const uint8_t* tile = header + header_bytes(T::s.scales, tiles);
      for (int t = 0; t < tiles; ++t, tile += bytes) {
#pragma GCC unroll 8
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch(tile + 3072 + i);
        const int64_t block = start + t;
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          vb lines[8];
          decode_tile<kFormat>(tile, part, lines);
#pragma GCC unroll 2
          for (int half = 0; half < halves; ++half) {
            const vf scale = tile_scale<T::s.scales>(header, t, half, part);
            const vf least = T::min ? tile_min<T::s.scales>(header, tiles, t, half, part) : vzero();
#pragma GCC unroll 8
            for (int m = 0; m < kTokens; ++m) {
              const uint8_t* record = x + m * call.x_stride;
              const int8_t* codes =
                  reinterpret_cast<const int8_t*>(record) + 32 * block + 4 * lines_a_half * half;
              vi total = vseti(0);
              if constexpr (T::starts) {
                const int64_t place = sum_place<T::halves>(planes.minus32, planes.minus16, block, half);
                total = vshl<T::s.offset_log2>(vseti(read_int(record + place)));
              }
#pragma GCC unroll 8
              for (int i = 0; i < lines_a_half; i += group_lines) {
                vp group = kDirect ? total : vseti(0);
#pragma GCC unroll 8
                for (int j = i; j < i + group_lines; ++j) {
                  group = dot_either<T::offset_in_dot>(group, lines[half * lines_a_half + j],
                                                       bbroadcast(codes + 4 * j));
                }
                total = kDirect ? group : vaddi(total, widen(group));
              }
              const vf both = scale * vset(read_float(record + planes.scales + 4 * block));
              sum[part][m] = vfma(vtofloat(total), both, sum[part][m]);
              if constexpr (T::min) {
                const int64_t place = sum_place<T::halves>(planes.sums32, planes.sums16, block, half);
                sum[part][m] = vfma(least, vset(read_float(record + place)), sum[part][m]);
              }
            }
          }
        }
      }
      header = tile;
    }
    for (int part = 0; part < kParts; ++part) {
      for (int m = 0; m < kTokens; ++m) {
        store_rows(call.y + (first + m) * call.y_stride, band * kBandRows + part * kWidth, call.rows,
                   sum[part][m]);
      }
    }
  }
}

template <Format kFormat>
void direct_group(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int tokens) {
  switch (tokens) {
    case 1:
      return direct_tokens<kFormat, 1>(call, begin, end, first);
    case 2:
      return direct_tokens<kFormat, 2>(call, begin, end, first);
    case 3:
      return direct_tokens<kFormat, 3>(call, begin, end, first);
    case 4:
      return direct_tokens<kFormat, 4>(call, begin, end, first);
    default:
      return direct_tokens<kFormat, kDirectGroup>(call, begin, end, first);
  }
}

template <Format kFormat>
void direct(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last) {
  if (last - first <= 4 || last - first == kDirectGroup) {
    return direct_group<kFormat>(call, begin, end, first, static_cast<int>(last - first));
  }
  // Band by band, so that a band comes from memory once and from L1 for the other groups.
  for (int64_t band = begin; band < end; ++band) {
    int64_t tokens;
    for (int64_t token = first; token < last; token += tokens) {
      tokens = last - token >= kDirectGroup ? kDirectGroup : last - token < 4 ? last - token : 4;
      direct_group<kFormat>(call, band, band + 1, token, static_cast<int>(tokens));
    }
  }
}

// ---- More tokens: unpack a panel once, then multiply it with groups of tokens.

constexpr int kSomeTokens = smaller(4, kPanelTokens);

// A panel of `bands` bands and `tiles` tiles: codes[band][tile][8][64], scales[band][tile][half][16], mins
// likewise.
struct Panel {
  uint8_t* codes;
  float *scales, *mins;
  int64_t tiles;
  int halves;

  uint8_t* tile_codes(int64_t band, int64_t tile) const { return codes + (band * tiles + tile) * 512; }
  int64_t scale_place(int64_t band, int64_t tile) const { return (band * tiles + tile) * halves * kBandRows; }
};

template <Format kFormat>
void unpack_panel(const LinearCall& call, int64_t begin, int64_t end, int64_t first_tile,
                  const Panel& panel) {
  using T = Traits<kFormat>;
  constexpr int chunk_bytes = header_bytes(T::s.scales, kChunkTiles) + kChunkTiles * tile_bytes(T::s);
  for (int64_t band = begin; band < end; ++band) {
    const uint8_t* header = call.weight + band * call.band_stride + first_tile / kChunkTiles * chunk_bytes;
    for (int64_t start = 0; start < panel.tiles; start += kChunkTiles) {
      const int tiles =
          static_cast<int>(panel.tiles - start < kChunkTiles ? panel.tiles - start : kChunkTiles);
      const uint8_t* tile = header + header_bytes(T::s.scales, tiles);
      for (int t = 0; t < tiles; ++t, tile += tile_bytes(T::s)) {
        uint8_t* codes = panel.tile_codes(band - begin, start + t);
        float* scales = panel.scales + panel.scale_place(band - begin, start + t);
        float* mins = panel.mins + panel.scale_place(band - begin, start + t);
        for (int part = 0; part < kParts; ++part) {
          vb lines[8];
          decode_tile<kFormat>(tile, part, lines);
          for (int j = 0; j < 8; ++j) bstore(codes + 64 * j + part * (64 / kParts), lines[j]);
          for (int half = 0; half < T::halves; ++half) {
            const int place = half * kBandRows + part * kWidth;
            vstore(scales + place, tile_scale<T::s.scales>(header, t, half, part));
            if (T::min) vstore(mins + place, tile_min<T::s.scales>(header, tiles, t, half, part));
          }
        }
      }
      header = tile;
    }
  }
}

// Two vectors of rows of a panel, and the tokens they meet.
struct Block {
  const uint8_t *codes0, *codes1;
  const float *scales0, *scales1, *mins0, *mins1;
  int64_t tiles;
  const uint8_t* x;                       // first token's codes at the panel's first column
  int64_t x_stride, scales, sums, minus;  // bytes from x to the planes at the panel's first tile
  int shift;
};

template <int kTokens, int kHalves, bool kMin, bool kStarts, bool kSigned, int kGroup>
inline void multiply(const Block& b, vf (&sum)[2][kTokens]) {
  constexpr int lines = 8 / kHalves, group = smaller(kGroup, lines);
  for (int64_t t = 0; t < b.tiles; ++t) {
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      const int64_t index = t * kHalves + half;
      vi total[2][kTokens];
#pragma GCC unroll 12
      for (int m = 0; m < kTokens; ++m) {
        total[0][m] = vseti(0);
        if constexpr (kStarts)
          total[0][m] = vshlv(vseti(read_int(b.x + m * b.x_stride + b.minus + 4 * index)), b.shift);
        total[1][m] = total[0][m];
      }
      const uint8_t* codes0 = b.codes0 + 64 * lines * index;
      const uint8_t* codes1 = b.codes1 + 64 * lines * index;
      const int8_t* x = reinterpret_cast<const int8_t*>(b.x) + 4 * lines * index;
#pragma GCC unroll 8
      for (int i = 0; i < lines; i += group) {
        vp part[2][kTokens];
#pragma GCC unroll 12
        for (int m = 0; m < kTokens; ++m) {
          part[0][m] = kDirect ? total[0][m] : vseti(0);
          part[1][m] = kDirect ? total[1][m] : vseti(0);
        }
#pragma GCC unroll 8
        for (int j = i; j < i + group; ++j) {
          const vb w0 = bload(codes0 + 64 * j), w1 = bload(codes1 + 64 * j);
#pragma GCC unroll 12
          for (int m = 0; m < kTokens; ++m) {
            const vb xs = bbroadcast(x + m * b.x_stride + 4 * j);
            part[0][m] = dot_either<kSigned>(part[0][m], w0, xs);
            part[1][m] = dot_either<kSigned>(part[1][m], w1, xs);
          }
        }
#pragma GCC unroll 12
        for (int m = 0; m < kTokens; ++m) {
          total[0][m] = kDirect ? part[0][m] : vaddi(total[0][m], widen(part[0][m]));
          total[1][m] = kDirect ? part[1][m] : vaddi(total[1][m], widen(part[1][m]));
        }
      }
      const vf s0 = vload(b.scales0 + kBandRows * index), s1 = vload(b.scales1 + kBandRows * index);
#pragma GCC unroll 12
      for (int m = 0; m < kTokens; ++m) {
        const vf scale = vset(read_float(b.x + m * b.x_stride + b.scales + 4 * t));
        sum[0][m] = vfma(vtofloat(total[0][m]), s0 * scale, sum[0][m]);
        sum[1][m] = vfma(vtofloat(total[1][m]), s1 * scale, sum[1][m]);
      }
      if constexpr (kMin) {
        const vf m0 = vload(b.mins0 + kBandRows * index), m1 = vload(b.mins1 + kBandRows * index);
#pragma GCC unroll 12
        for (int m = 0; m < kTokens; ++m) {
          const vf x_sum = vset(read_float(b.x + m * b.x_stride + b.sums + 4 * index));
          sum[0][m] = vfma(m0, x_sum, sum[0][m]);
          sum[1][m] = vfma(m1, x_sum, sum[1][m]);
        }
      }
    }
  }
}

// `start` is bias (or null) for the first panel of a row, else what y holds is added to.
template <int kTokens, int kHalves, bool kMin, bool kStarts, bool kSigned, int kGroup>
void panel_tokens(const Block& b, const float* bias, bool add, int64_t row, int64_t rows, float* y,
                  int64_t y_stride) {
  vf sum[2][kTokens];
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    const float* from = add ? y + m * y_stride : bias;
    sum[0][m] = from ? load_rows(from, row, rows) : vzero();
    sum[1][m] = from ? load_rows(from, row + kWidth, rows) : vzero();
  }
  multiply<kTokens, kHalves, kMin, kStarts, kSigned, kGroup>(b, sum);
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    store_rows(y + m * y_stride, row, rows, sum[0][m]);
    store_rows(y + m * y_stride, row + kWidth, rows, sum[1][m]);
  }
}

template <Format kFormat>
void panel(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last,
           uint8_t* scratch) {
  using T = Traits<kFormat>;
  const ActivationPlanes planes = activation_planes(call.columns);
  const int64_t all = call.columns / kTileColumns;
  const int64_t rows = end * kBandRows < call.rows ? end * kBandRows : call.rows;
  for (int64_t start = 0; start < all; start += kPanelColumns / kTileColumns) {
    Panel p{};
    p.tiles = all - start < kPanelColumns / kTileColumns ? all - start : kPanelColumns / kTileColumns;
    p.halves = T::halves;
    p.codes = scratch;
    p.scales = reinterpret_cast<float*>(scratch + kPanelBands * p.tiles * 512);
    p.mins = p.scales + kPanelBands * p.tiles * T::halves * kBandRows;
    unpack_panel<kFormat>(call, begin, end, start, p);

    Block b{};
    b.tiles = p.tiles;
    b.x_stride = call.x_stride;
    b.scales = planes.scales + 4 * start - 32 * start;
    b.sums = sum_place<T::halves>(planes.sums32, planes.sums16, start, 0) - 32 * start;
    b.minus = sum_place<T::halves>(planes.minus32, planes.minus16, start, 0) - 32 * start;
    b.shift = T::starts ? T::s.offset_log2 : 0;
    int64_t tokens;
    for (int64_t token = first; token < last; token += tokens) {
      const int64_t left = last - token;
      tokens = left >= kPanelTokens && left != 8 ? kPanelTokens
               : left >= kSomeTokens             ? kSomeTokens
               : left >= 2                       ? 2
                                                 : 1;
      b.x = call.x + token * call.x_stride + 32 * start;
      float* y = call.y + token * call.y_stride;
      for (int64_t row = begin * kBandRows; row < rows; row += 2 * kWidth) {
        const int64_t other =
            row + kWidth < end * kBandRows ? row + kWidth : row;  // an odd last band meets itself
        const auto codes = [&](int64_t r) {
          return p.tile_codes(r / kBandRows - begin, 0) + r % kBandRows / kWidth * (64 / kParts);
        };
        const auto place = [&](int64_t r) { return p.scale_place(r / kBandRows - begin, 0) + r % kBandRows; };
        b.codes0 = codes(row);
        b.codes1 = codes(other);
        b.scales0 = p.scales + place(row);
        b.scales1 = p.scales + place(other);
        b.mins0 = p.mins + place(row);
        b.mins1 = p.mins + place(other);
        const auto run = [&]<int kTokens>() {
          panel_tokens<kTokens, T::halves, T::min, T::starts, T::offset_in_dot, T::group>(
              b, call.bias, start > 0, row, rows, y, call.y_stride);
        };
        if (tokens == 1) {
          run.template operator()<1>();
        } else if (tokens == 2) {
          run.template operator()<2>();
        } else if (tokens == kSomeTokens) {
          run.template operator()<kSomeTokens>();
        } else {
          run.template operator()<kPanelTokens>();
        }
      }
    }
  }
}

#define KTC_EACH_INTEGER_FORMAT(kernel)                                                         \
  nullptr, nullptr, nullptr, kernel<Format::q4_0>, kernel<Format::q4_1>, kernel<Format::q5_0>,  \
      kernel<Format::q5_1>, kernel<Format::q8_0>, kernel<Format::q2_k>, kernel<Format::q3_k>,   \
      kernel<Format::q4_k>, kernel<Format::q5_k>, kernel<Format::q6_k>, kernel<Format::iq4_nl>, \
      kernel<Format::iq4_xs>, kernel<Format::mxfp4>

}  // namespace
}  // namespace ktc::kernels
