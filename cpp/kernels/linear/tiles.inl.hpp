// Weights as AMX tiles of bf16.
//
// Why not tiles of bytes: every 32 columns have scales of their own, so that each product of byte tiles had
// to go through L1 and be scaled by vectors. Measured on Sapphire Rapids, that took 200 ns for 32 x 32 x 32
// products, where AVX-512 VNNI takes 160 and bf16 tiles need no scaling at all. Rounding both sides to bf16
// costs an NMSE of about 3e-6 against float activations; rounding activations to bytes, as the other kernels
// do, costs 3e-5.
#pragma once

#include "isa/tiles.inl.hpp"
#include "kernels/linear/panel.inl.hpp"

namespace ktc::kernels {
namespace {

using isa::load_configuration;
using isa::TileConfiguration;

// Weights are cut to bf16, not rounded: that takes half of the instructions. Cutting makes them smaller by
// 0.28 % on average, so the scales are that much larger; the NMSE that is left is 3.1e-6, where rounding has
// 2.8e-6. A weight that bf16 can hold stays as it is.
constexpr float kCut = 1.0028f;

// One line of codes, 16 rows x 4 columns, as two lines of pairs: a code in the upper bits of a mantissa is
// 1 + code / 256, which one multiply-add takes to the weight.
inline void unpack_line(vb line, vf scale, vf least, uint8_t* out) {
  const vi one = _mm512_set1_epi32(0x3f800000), place = _mm512_set1_epi32(0x007f8000);
  const vi high = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000));
  const auto weight = [&](vi bits) {
    const vf code = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, place, one, 0xea));  // (a & b) | c
    return _mm512_castps_si512(vfma(code, scale, least));
  };
  const auto pair = [&](vi even, vi odd) {  // a | (b & c)
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(even, 16), odd, high, 0xf8);
  };
  const vi k0 = weight(_mm512_slli_epi32(line, 15)), k1 = weight(_mm512_slli_epi32(line, 7));
  const vi k2 = weight(_mm512_srli_epi32(line, 1)), k3 = weight(_mm512_srli_epi32(line, 9));
  _mm512_store_si512(out, pair(k0, k1));
  _mm512_store_si512(out + 64, pair(k2, k3));
}

// Tiles [first, first + tiles) of a chunk of `all` tiles to bf16 tiles `step` bytes apart.
template <Format kFormat>
inline void unpack_chunk(const uint8_t* header, int all, int first, int tiles, uint8_t* out, int64_t step) {
  using T = Traits<kFormat>;
  constexpr int lines_of_half = 8 / T::halves;
  const uint8_t* tile = header + header_bytes(T::s.scales, all) + first * tile_bytes(T::s);
  for (int t = first; t < first + tiles; ++t, tile += tile_bytes(T::s), out += step) {
    vb lines[8];
    decode_tile<kFormat>(tile, 0, lines);
#pragma GCC unroll 2
    for (int half = 0; half < T::halves; ++half) {
      const vf scale = tile_scale<T::s.scales>(header, t, half, 0) * vset(256 * kCut);
      vf least = vzero() - scale;
      if constexpr (T::min) {
        least = vfma(tile_min<T::s.scales>(header, all, t, half, 0), vset(kCut), least);
      } else if constexpr (T::shift >= 0) {
        least = scale * vset(-1 - static_cast<float>(1 << T::shift) / 256);
      }
#pragma GCC unroll 8
      for (int j = half * lines_of_half; j < (half + 1) * lines_of_half; ++j)
        unpack_line(lines[j], scale, least, out + 128 * j);
    }
  }
}

}  // namespace
}  // namespace ktc::kernels
