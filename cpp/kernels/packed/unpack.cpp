// Turns rows of packed weights back into floats: for embeddings and for tests.
#include <cstring>

#include "kernels/packed/pack.hpp"
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/generic.inl.hpp"
#include "kernels/packed/tile.inl.hpp"
// clang-format on

namespace ktc::kernels {
namespace {

using UnpackRow = void (*)(const uint8_t* band, int row, int64_t columns, float* out);

template <Format kFormat>
void unpack_codes(const uint8_t* band, int row, int64_t columns, float* out) {
  constexpr Spec s = spec(kFormat);
  constexpr int halves = 32 / scale_columns(s.scales);
  constexpr int offset = s.offset_log2 < 0 ? 0 : 1 << s.offset_log2;
  const int part = row / kWidth, lane = row % kWidth;
  while (columns > 0) {
    const int tiles = static_cast<int>(columns < 256 ? columns / 32 : kChunkTiles);
    const uint8_t* tile = band + header_bytes(s.scales, tiles);
    for (int t = 0; t < tiles; ++t, tile += tile_bytes(s), out += 32) {
      vb lines[8];
      decode_tile<kFormat>(tile, part, lines);
      for (int half = 0; half < halves; ++half) {
        const float scale = tile_scale<s.scales>(band, t, half, part)[lane];
        const float minimum = has_min(s.scales) ? tile_min<s.scales>(band, tiles, t, half, part)[lane] : 0.0f;
        for (int i = half * 32 / halves; i < (half + 1) * 32 / halves; ++i) {
          uint8_t bytes[16];
          bstore(bytes, lines[i / 4]);
          const float value = scale * static_cast<float>(bytes[4 * lane + i % 4] - offset);
          out[i] = has_min(s.scales) ? value + minimum : value;
        }
      }
    }
    band = tile;
    columns -= 32 * tiles;
  }
}

void unpack_f32(const uint8_t* band, int row, int64_t columns, float* out) {
  for (int64_t i = 0; i < columns; ++i) std::memcpy(out + i, band + 4 * (16 * i + row), 4);
}

void unpack_f16(const uint8_t* band, int row, int64_t columns, float* out) {
  for (int64_t i = 0; i < columns; ++i) {
    uint16_t half;
    std::memcpy(&half, band + 2 * (16 * i + row), 2);
    out[i] = half_to_float(half);
  }
}

void unpack_bf16(const uint8_t* band, int row, int64_t columns, float* out) {
  for (int64_t i = 0; i < columns; ++i) {
    uint16_t half;
    std::memcpy(&half, band + 2 * (32 * (i / 2) + 2 * row + i % 2), 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(out + i, &bits, 4);
  }
}

void unpack_fp8(const uint8_t* band, int row, int64_t columns, float* out) {
  for (int64_t i = 0; i < columns; ++i) {
    const uint8_t* piece = band + i / kFp8Columns * kFp8Bytes;
    float scale;
    std::memcpy(&scale, piece + 4 * row, 4);
    const uint8_t code = piece[4 * kBandRows + i % kFp8Columns * kBandRows + row];
    out[i] = half_to_float(fp8_as_half(code)) * scale;
  }
}

constexpr UnpackRow kUnpack[kFormats] = {
    unpack_f32,
    unpack_f16,
    unpack_bf16,
    unpack_codes<Format::q4_0>,
    unpack_codes<Format::q4_1>,
    unpack_codes<Format::q5_0>,
    unpack_codes<Format::q5_1>,
    unpack_codes<Format::q8_0>,
    unpack_codes<Format::q2_k>,
    unpack_codes<Format::q3_k>,
    unpack_codes<Format::q4_k>,
    unpack_codes<Format::q5_k>,
    unpack_codes<Format::q6_k>,
    unpack_codes<Format::iq4_nl>,
    unpack_codes<Format::iq4_xs>,
    unpack_codes<Format::mxfp4>,
    unpack_fp8,
};

}  // namespace

void unpack_row(const PackedWeight& weight, int64_t row, float* out) {
  const uint8_t* band = weight.data + row / kBandRows * band_bytes(weight.format, weight.columns);
  kUnpack[static_cast<int>(weight.format)](band, static_cast<int>(row % kBandRows), weight.columns, out);
}

}  // namespace ktc::kernels
