// Reads tiles and chunk headers of the packed layout with the vectors of a simd/ header, which the source
// that includes this one has included before.
#pragma once

#include "kernels/packed/format.hpp"

namespace ktc::kernels {
namespace {

template <int kShift, int kBits, int kPlace>
inline vb high_bits(vb codes, vb plane) {
  return bmerge(codes, bshift<kShift - kPlace>(plane), bset(((1 << kBits) - 1) << kPlace));
}

// Lines kFirst and kFirst + 1 of a tile, kWidth rows of each whose bytes start at `p` in the first piece, as
// unsigned codes.
template <Format kFormat, int kFirst>
inline void decode_lines(const uint8_t* p, vb& first, vb& second) {
  constexpr Spec s = spec(kFormat);
  if constexpr (s.low_bits == 8) {
    first = bload(p + 64 * kFirst);
    second = bload(p + 64 * (kFirst + 1));
  } else if constexpr (s.low_bits == 4) {
    const vb mask = bset(0x0f), piece = bload(p + 64 * (kFirst / 2));
    first = band(piece, mask);
    second = band(bshift<4>(piece), mask);
  } else {
    const vb mask = bset(0x03), piece = bload(p + 64 * (kFirst / 4));
    first = band(bshift<2 * (kFirst % 4)>(piece), mask);
    second = band(bshift<2 * (kFirst % 4) + 2>(piece), mask);
  }
  constexpr int place = s.low_bits;
  if constexpr (s.high_bits == 1) {
    const vb plane = bload(p + 64 * s.low_bits);
    first = high_bits<kFirst, 1, place>(first, plane);
    second = high_bits<kFirst + 1, 1, place>(second, plane);
  } else if constexpr (s.high_bits == 2) {
    const vb plane = bload(p + 64 * (s.low_bits + kFirst / 4));
    first = high_bits<2 * (kFirst % 4), 2, place>(first, plane);
    second = high_bits<2 * (kFirst % 4) + 2, 2, place>(second, plane);
  }
  if constexpr (s.table != nullptr) {
    first = blookup(first, s.table);
    second = blookup(second, s.table);
  }
}

// The 8 lines of a tile, kWidth rows of each from row kWidth * part on.
template <Format kFormat>
inline void decode_tile(const uint8_t* tile, int part, vb (&lines)[8]) {
  const uint8_t* p = tile + part * (64 / kParts);
  decode_lines<kFormat, 0>(p, lines[0], lines[1]);
  decode_lines<kFormat, 2>(p, lines[2], lines[3]);
  decode_lines<kFormat, 4>(p, lines[4], lines[5]);
  decode_lines<kFormat, 6>(p, lines[6], lines[7]);
}

// Scales of kWidth rows from row kWidth * part on, for half `half` of tile `tile` (0 where a tile has one
// scale). weight = scale * (code - offset) + min.
template <Scales kScales>
inline vf tile_scale(const uint8_t* header, int tile, int half, int part) {
  const int row = part * kWidth;
  const auto halves = [row](const uint8_t* p) {
    return vload_half(reinterpret_cast<const uint16_t*>(p) + row);
  };
  if constexpr (kScales == Scales::half) return halves(header + 32 * tile);
  if constexpr (kScales == Scales::half_min) return halves(header + 64 * tile);
  if constexpr (kScales == Scales::exponent) return vload_exponent(header + 16 * tile + row);
  if constexpr (kScales == Scales::k32) return halves(header) * vload_s8(header + 32 + 16 * tile + row);
  if constexpr (kScales == Scales::k32_min) return halves(header) * vload_u8(header + 64 + 16 * tile + row);
  if constexpr (kScales == Scales::k16)
    return halves(header) * vload_s8(header + 32 + 32 * tile + 16 * half + row);
  if constexpr (kScales == Scales::k16_min)
    return halves(header) * vload_low(header + 64 + 32 * tile + 16 * half + row);
  return vzero();
}

template <Scales kScales>
inline vf tile_min(const uint8_t* header, int tiles, int tile, int half, int part) {
  const int row = part * kWidth;
  const auto halves = [row](const uint8_t* p) {
    return vload_half(reinterpret_cast<const uint16_t*>(p) + row);
  };
  if constexpr (kScales == Scales::half_min) return halves(header + 64 * tile + 32);
  if constexpr (kScales == Scales::k32_min) {
    return vzero() - halves(header + 32) * vload_u8(header + 64 + 16 * tiles + 16 * tile + row);
  }
  if constexpr (kScales == Scales::k16_min) {
    return vzero() - halves(header + 32) * vload_high(header + 64 + 32 * tile + 16 * half + row);
  }
  return vzero();
}

}  // namespace
}  // namespace ktc::kernels
