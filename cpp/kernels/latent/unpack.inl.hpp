// Packed weights as floats, transposed, for the vectors of the simd/ header included before: a band holds 16
// rows of each column together, so that its columns become runs of 16 floats.
#pragma once

#include "kernels/latent/tables.hpp"
#include "kernels/packed/tile.inl.hpp"

namespace ktc::kernels {
namespace {

typedef int32_t vwords __attribute__((vector_size(4 * kWidth)));
typedef float vfloats __attribute__((vector_size(4 * kWidth)));

// Byte `place` of each dword of a line, as floats.
inline vf line_floats(vb line, int place, int offset) {
  vwords words;
  __builtin_memcpy(&words, &line, sizeof words);
  return (vf) __builtin_convertvector(((words >> (8 * place)) & 255) - offset, vfloats);
}

template <Format kFormat>
const uint8_t* unpack_chunk(const uint8_t* header, int tiles, float* out, int64_t stride) {
  constexpr Spec s = spec(kFormat);
  constexpr int halves = 32 / scale_columns(s.scales);
  constexpr int offset = s.offset_log2 < 0 ? 0 : 1 << s.offset_log2;
  const uint8_t* tile = header + header_bytes(s.scales, tiles);
  for (int t = 0; t < tiles; ++t, tile += tile_bytes(s)) {
    for (int part = 0; part < kParts; ++part) {
      vb lines[8];
      decode_tile<kFormat>(tile, part, lines);
      for (int half = 0; half < halves; ++half) {
        const vf scale = tile_scale<s.scales>(header, t, half, part);
        const vf minimum = tile_min<s.scales>(header, tiles, t, half, part);
        for (int i = half * 32 / halves; i < (half + 1) * 32 / halves; ++i) {
          vf value = scale * line_floats(lines[i / 4], i % 4, offset);
          if (has_min(s.scales)) value = value + minimum;
          vstore(out + (32 * t + i) * stride + part * kWidth, value);
        }
      }
    }
  }
  return tile;
}

template <Format kFormat>
void unpack_codes(const uint8_t* packed, int64_t rows, int64_t columns, float* out) {
  for (int64_t row = 0; row < rows; row += kBandRows) {
    for (int64_t column = 0; column < columns; column += kChunkTiles * kTileColumns) {
      const int64_t left = (columns - column) / kTileColumns;
      const int tiles = static_cast<int>(left < kChunkTiles ? left : kChunkTiles);
      packed = unpack_chunk<kFormat>(packed, tiles, out + column * rows + row, rows);
    }
  }
}

template <Format kFormat>
void unpack_floats(const uint8_t* packed, int64_t rows, int64_t columns, float* out) {
  for (int64_t row = 0; row < rows; row += kBandRows) {
    for (int64_t column = 0; column < columns; column += 2) {
      for (int part = 0; part < kBandRows; part += kWidth) {
        vf even, odd;
        if constexpr (kFormat == Format::f32) {
          const float* p = reinterpret_cast<const float*>(packed) + column * kBandRows + part;
          even = vload(p);
          odd = vload(p + kBandRows);
        } else if constexpr (kFormat == Format::f16) {
          const uint16_t* p = reinterpret_cast<const uint16_t*>(packed) + column * kBandRows + part;
          even = vload_half(p);
          odd = vload_half(p + kBandRows);
        } else if constexpr (kFormat == Format::fp8) {
          const uint8_t* piece = packed + column / kFp8Columns * kFp8Bytes;
          const vf scale = vload(reinterpret_cast<const float*>(piece) + part);
          const uint8_t* p = piece + (4 + column % kFp8Columns) * kBandRows + part;
          even = vload_fp8(p) * scale;
          odd = vload_fp8(p + kBandRows) * scale;
        } else {
          vload_bfloat_pairs(packed + 2 * (column * kBandRows + 2 * part), even, odd);
        }
        vstore(out + column * rows + row + part, even);
        vstore(out + (column + 1) * rows + row + part, odd);
      }
    }
    packed += band_bytes(kFormat, columns);
  }
}

// In the order of Format; null for a format without a packed layout.
const UnpackTransposed kUnpack[kFormats] = {
    unpack_floats<Format::f32>,  unpack_floats<Format::f16>,   unpack_floats<Format::bf16>,
    unpack_codes<Format::q4_0>,  unpack_codes<Format::q4_1>,   unpack_codes<Format::q5_0>,
    unpack_codes<Format::q5_1>,  unpack_codes<Format::q8_0>,   unpack_codes<Format::q2_k>,
    unpack_codes<Format::q3_k>,  unpack_codes<Format::q4_k>,   unpack_codes<Format::q5_k>,
    unpack_codes<Format::q6_k>,  unpack_codes<Format::iq4_nl>, unpack_codes<Format::iq4_xs>,
    unpack_codes<Format::mxfp4>, unpack_floats<Format::fp8>,
};

}  // namespace
}  // namespace ktc::kernels
