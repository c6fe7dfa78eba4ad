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

// The 8 lines of a tile, kWidth rows of each from row kWidth * part on, as unsigned codes.
template <Format kFormat>
inline void decode_tile(const uint8_t* tile, int part, vb (&lines)[8]) {
  constexpr Spec s = spec(kFormat);
  const uint8_t* p = tile + part * (64 / kParts);
  if constexpr (s.low_bits == 8) {
    for (int j = 0; j < 8; ++j) lines[j] = bload(p + 64 * j);
  } else if constexpr (s.low_bits == 4) {
    const vb mask = bset(0x0f);
    for (int i = 0; i < 4; ++i) {
      const vb piece = bload(p + 64 * i);
      lines[2 * i] = band(piece, mask);
      lines[2 * i + 1] = band(bshift<4>(piece), mask);
    }
  } else {
    const vb mask = bset(0x03);
    for (int i = 0; i < 2; ++i) {
      const vb piece = bload(p + 64 * i);
      lines[4 * i] = band(piece, mask);
      lines[4 * i + 1] = band(bshift<2>(piece), mask);
      lines[4 * i + 2] = band(bshift<4>(piece), mask);
      lines[4 * i + 3] = band(bshift<6>(piece), mask);
    }
  }
  constexpr int place = s.low_bits;
  const uint8_t* high = p + 64 * s.low_bits;
  if constexpr (s.high_bits == 1) {
    const vb plane = bload(high);
    lines[0] = high_bits<0, 1, place>(lines[0], plane);
    lines[1] = high_bits<1, 1, place>(lines[1], plane);
    lines[2] = high_bits<2, 1, place>(lines[2], plane);
    lines[3] = high_bits<3, 1, place>(lines[3], plane);
    lines[4] = high_bits<4, 1, place>(lines[4], plane);
    lines[5] = high_bits<5, 1, place>(lines[5], plane);
    lines[6] = high_bits<6, 1, place>(lines[6], plane);
    lines[7] = high_bits<7, 1, place>(lines[7], plane);
  } else if constexpr (s.high_bits == 2) {
    for (int i = 0; i < 2; ++i) {
      const vb plane = bload(high + 64 * i);
      lines[4 * i] = high_bits<0, 2, place>(lines[4 * i], plane);
      lines[4 * i + 1] = high_bits<2, 2, place>(lines[4 * i + 1], plane);
      lines[4 * i + 2] = high_bits<4, 2, place>(lines[4 * i + 2], plane);
      lines[4 * i + 3] = high_bits<6, 2, place>(lines[4 * i + 3], plane);
    }
  }
  if constexpr (s.table != nullptr) {
    for (int j = 0; j < 8; ++j) lines[j] = blookup(lines[j], s.table);
  }
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
