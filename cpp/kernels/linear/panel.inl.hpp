// Integer linear kernels for many tokens: 32 rows x 512 columns are unpacked into L1, then meet all tokens,
// two vectors of rows and up to kPanelTokens tokens at a time.
#pragma once

#include "kernels/linear/direct.inl.hpp"

namespace ktc::kernels {
namespace {

// What a panel and the kernel that multiplies with it need to know of a format, so that formats share it.
template <int kHalves, bool kMin, int kShift, bool kSigned, int kGroup>
struct PanelShape {
  static constexpr int halves = kHalves, shift = kShift, group = kGroup;
  static constexpr bool min = kMin, is_signed = kSigned;
  // A tile of a panel: 8 lines of codes, then the scales of its halves, then the minima.
  static constexpr int scales = 512, minima = scales + 64 * kHalves;
  static constexpr int bytes = minima + (kMin ? 64 * kHalves : 0);
};

template <Format kFormat>
using PanelOf = PanelShape<Traits<kFormat>::halves, Traits<kFormat>::min, Traits<kFormat>::shift,
                           Traits<kFormat>::offset_in_dot, Traits<kFormat>::group>;

// Tiles [0, tiles) from `header` on, the start of a chunk, to panel tiles `step` bytes apart.
template <Format kFormat>
inline void unpack_panel(const uint8_t* header, int64_t tiles, uint8_t* panel, int64_t step) {
  using T = Traits<kFormat>;
  using Shape = PanelOf<kFormat>;
  for (int64_t start = 0; start < tiles; start += kChunkTiles) {
    const int here = static_cast<int>(tiles - start < kChunkTiles ? tiles - start : kChunkTiles);
    const uint8_t* tile = header + header_bytes(T::s.scales, here);
    for (int t = 0; t < here; ++t, tile += tile_bytes(T::s), panel += step) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        vb lines[8];
        decode_tile<kFormat>(tile, part, lines);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) bstore(panel + 64 * j + part * (64 / kParts), lines[j]);
#pragma GCC unroll 2
        for (int half = 0; half < T::halves; ++half) {
          const int place = 64 * half + 4 * kWidth * part;
          vstore(reinterpret_cast<float*>(panel + Shape::scales + place),
                 tile_scale<T::s.scales>(header, t, half, part));
          if constexpr (T::min) {
            vstore(reinterpret_cast<float*>(panel + Shape::minima + place),
                   tile_min<T::s.scales>(header, here, t, half, part));
          }
        }
      }
    }
    header = tile;
  }
}

// kVectors vectors of rows, `between` bytes apart in the panel, times kTokens tokens.
template <class Shape, int kVectors, int kTokens>
inline void multiply(const uint8_t* panel, int64_t step, int64_t tiles, const ActivationBlock* const* tokens,
                     vf (&sum)[kVectors][kTokens]) {
  constexpr int lines = 8 / Shape::halves, group = smaller(Shape::group, lines);
  // The second vector is the next band's, or the next rows of the same band.
  constexpr int between = kParts == 1 ? Shape::bytes : 4 * kWidth;
  const ActivationBlock* x[kTokens];
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) x[m] = tokens[m];
  for (int64_t t = 0; t < tiles; ++t, panel += step) {
#pragma GCC unroll 2
    for (int half = 0; half < Shape::halves; ++half) {
      vi total[kVectors][kTokens];
#pragma GCC unroll 12
      for (int m = 0; m < kTokens; ++m) {
        vi start = vseti(0);
        if constexpr (Shape::shift >= 0)
          start = vshl<Shape::shift>(vseti(minus_of<Shape::halves>(x[m][t], half)));
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) total[v][m] = start;
      }
#pragma GCC unroll 8
      for (int i = half * lines; i < (half + 1) * lines; i += group) {
        vp part[kVectors][kTokens];
#pragma GCC unroll 12
        for (int m = 0; m < kTokens; ++m) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) part[v][m] = kDirect ? total[v][m] : vseti(0);
        }
#pragma GCC unroll 8
        for (int j = i; j < i + group; ++j) {
          vb w[kVectors];
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) w[v] = bload(panel + v * between + 64 * j);
#pragma GCC unroll 12
          for (int m = 0; m < kTokens; ++m) {
            const vb codes = bbroadcast(x[m][t].codes + 4 * j);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v)
              part[v][m] = dot_either<Shape::is_signed>(part[v][m], w[v], codes);
          }
        }
#pragma GCC unroll 12
        for (int m = 0; m < kTokens; ++m) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v)
            total[v][m] = kDirect ? part[v][m] : vaddi(total[v][m], widen(part[v][m]));
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const float* place = reinterpret_cast<const float*>(panel + v * between) + 16 * half;
        const vf scale = vload(place + Shape::scales / 4);
#pragma GCC unroll 12
        for (int m = 0; m < kTokens; ++m)
          sum[v][m] = vfma(vtofloat(total[v][m]), scale * vset(x[m][t].scale), sum[v][m]);
        if constexpr (Shape::min) {
          const vf least = vload(place + Shape::minima / 4);
#pragma GCC unroll 12
          for (int m = 0; m < kTokens; ++m)
            sum[v][m] = vfma(least, vset(sum_of<Shape::halves>(x[m][t], half)), sum[v][m]);
        }
      }
    }
  }
}

// Where the sums of a group of tokens start, and where they go: rows [row, rows).
struct Sums {
  const float* bias;  // or null; not read where `add` says that y holds a sum already
  bool add;
  float* y;
  int64_t y_stride, row, rows;
};

template <class Shape, int kVectors, int kTokens>
void panel_tokens(const uint8_t* panel, int64_t step, int64_t tiles, const ActivationBlock* const* tokens,
                  const Sums& s) {
  vf sum[kVectors][kTokens];
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
    const float* from = s.add ? s.y + m * s.y_stride : s.bias;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sum[v][m] = from ? load_rows(from, s.row + v * kWidth, s.rows) : vzero();
  }
  multiply<Shape, kVectors, kTokens>(panel, step, tiles, tokens, sum);
#pragma GCC unroll 12
  for (int m = 0; m < kTokens; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      store_rows(s.y + m * s.y_stride, s.row + v * kWidth, s.rows, sum[v][m]);
  }
}

template <class Shape, int kVectors>
inline void panel_group(int count, const uint8_t* panel, int64_t step, int64_t tiles,
                        const ActivationBlock* const* tokens, const Sums& s) {
  switch (count) {
    case 1:
      return panel_tokens<Shape, kVectors, 1>(panel, step, tiles, tokens, s);
    case 2:
      return panel_tokens<Shape, kVectors, 2>(panel, step, tiles, tokens, s);
    case 3:
      return panel_tokens<Shape, kVectors, smaller(3, kPanelTokens)>(panel, step, tiles, tokens, s);
    case 4:
      return panel_tokens<Shape, kVectors, smaller(4, kPanelTokens)>(panel, step, tiles, tokens, s);
    case 5:
      return panel_tokens<Shape, kVectors, smaller(5, kPanelTokens)>(panel, step, tiles, tokens, s);
    default:
      return panel_tokens<Shape, kVectors, kPanelTokens>(panel, step, tiles, tokens, s);
  }
}

// Asks for the next panel's weights a few lines at a time, while this one is multiplied.
struct Ahead {
  const uint8_t* line;
  int64_t stride;  // from one band's lines to the next band's
  int64_t lines, bands, next = 0;

  void ask(int64_t count) {
    for (int64_t i = 0; i < count && next < lines * bands; ++i, ++next)
      __builtin_prefetch(line + next / lines * stride + next % lines * 64, 0, 2);
  }
};

// Cuts bands [begin, end) into panels and the tokens [first, last) into groups of at most `group`: calls
// unpack(band of the panel, its header, tiles, bands) for each band of a panel, then body(bands, tiles, first
// tile, token, count of tokens, sums) for each group.
template <Format kFormat, class Unpack, class Body>
inline void each_panel(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last,
                       int64_t group, Unpack&& unpack, Body&& body) {
  using T = Traits<kFormat>;
  constexpr int chunk_bytes = header_bytes(T::s.scales, kChunkTiles) + kChunkTiles * tile_bytes(T::s);
  constexpr int full_bytes = kPanelTiles / kChunkTiles * chunk_bytes;
  const int64_t all = call.columns / kTileColumns, groups = (last - first + group - 1) / group;
  for (int64_t band = begin; band < end; band += kPanelBands) {
    const int bands = static_cast<int>(end - band < kPanelBands ? end - band : kPanelBands);
    for (int64_t start = 0; start < all; start += kPanelTiles) {
      const int64_t tiles = all - start < kPanelTiles ? all - start : kPanelTiles;
      const uint8_t* weights = call.weight + band * call.band_stride + start / kPanelTiles * full_bytes;
      for (int i = 0; i < bands; ++i) unpack(i, weights + i * call.band_stride, tiles, bands);

      Ahead ahead{weights + full_bytes, call.band_stride, (full_bytes + 63) / 64, bands};
      if (start + kPanelTiles >= all) {
        const bool more = band + kPanelBands < end;
        ahead.line =
            more ? weights - start / kPanelTiles * full_bytes + kPanelBands * call.band_stride : call.after;
        if (!ahead.line) ahead.bands = 0;
      }
      const int64_t share = (ahead.lines * ahead.bands + groups - 1) / groups;
      Sums s{call.bias, start > 0, nullptr, call.y_stride, band * kBandRows, call.rows};
      for (int64_t token = first; token < last; token += group) {
        s.y = call.y + token * call.y_stride;
        ahead.ask(share);
        body(bands, tiles, start, token, static_cast<int>(last - token < group ? last - token : group), s);
      }
    }
  }
}

template <Format kFormat>
void panel(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last,
           uint8_t* scratch) {
  using Shape = PanelOf<kFormat>;
  each_panel<kFormat>(
      call, begin, end, first, last, kPanelTokens,
      [scratch](int band, const uint8_t* header, int64_t tiles, int bands) {
        unpack_panel<kFormat>(header, tiles, scratch + band * Shape::bytes, bands * Shape::bytes);
      },
      [&call, scratch](int bands, int64_t tiles, int64_t start, int64_t token, int count, Sums& s) {
        const int64_t step = bands * Shape::bytes, row = s.row;
        const ActivationBlock* x[kPanelTokens];
        for (int m = 0; m < count; ++m) x[m] = record(call, token + m) + start;
        if (kParts == 1 && bands == 1) return panel_group<Shape, 1>(count, scratch, step, tiles, x, s);
        for (int vector = 0; vector < bands * kParts; vector += 2) {
          s.row = row + vector * kWidth;
          panel_group<Shape, 2>(count,
                                scratch + vector / kParts * Shape::bytes + vector % kParts * 4 * kWidth, step,
                                tiles, x, s);
        }
        s.row = row;
      });
}

// What a panel saves is the decoding of the weight for every kDirectGroup tokens. With 32 registers that is
// less than what storing and loading the codes costs (measured on Zen 4), but for formats whose tiles take
// twice the work.
template <Format kFormat>
void many(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last, uint8_t* scratch) {
  if constexpr (kWidth == 16 && Traits<kFormat>::halves == 1) {
    direct<kFormat>(call, begin, end, first, last);
  } else {
    panel<kFormat>(call, begin, end, first, last, scratch);
  }
}

}  // namespace
}  // namespace ktc::kernels
