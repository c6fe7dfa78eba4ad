// Packs weights into the r16 layout.
#include "kernels/packed/pack.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/packed/blocks.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

// The 4 codes of line `line` of a tile as one word.
uint32_t word(const uint8_t* codes, int line) {
  uint32_t value;
  std::memcpy(&value, codes + 4 * line, 4);
  return value;
}

void put_word(uint8_t* tile, int piece, int row, uint32_t value) {
  std::memcpy(tile + 64 * piece + 4 * row, &value, 4);
}

// Writes row `row` of one tile.
void put_codes(const Spec& s, const uint8_t* codes, int row, uint8_t* tile) {
  const int per_piece = 8 / s.low_bits;
  const uint32_t low_mask = ((1u << s.low_bits) - 1) * 0x01010101u;
  for (int piece = 0; piece < s.low_bits; ++piece) {
    uint32_t value = 0;
    for (int i = 0; i < per_piece; ++i) {
      value |= (word(codes, piece * per_piece + i) & low_mask) << (i * s.low_bits);
    }
    put_word(tile, piece, row, value);
  }
  if (s.high_bits == 0) return;
  const int per_plane = 8 / s.high_bits;
  const uint32_t high_mask = ((1u << s.high_bits) - 1) * 0x01010101u;
  for (int plane = 0; plane < s.high_bits; ++plane) {
    uint32_t value = 0;
    for (int i = 0; i < per_plane; ++i) {
      value |= (word(codes, plane * per_plane + i) >> s.low_bits & high_mask) << (i * s.high_bits);
    }
    put_word(tile, s.low_bits + plane, row, value);
  }
}

void put_half(uint8_t* place, int row, uint16_t value) {
  std::memcpy(place + 2 * row, &value, 2);
}

// Writes row `row` of a chunk's header.
void put_scales(Scales scales, const RowChunk& chunk, int tiles, int row, uint8_t* header) {
  const bool of_k_format = scales == Scales::k32 || scales == Scales::k32_min || scales == Scales::k16 ||
                           scales == Scales::k16_min;
  if (of_k_format) put_half(header, row, chunk.d[0]);
  if (scales == Scales::k32_min || scales == Scales::k16_min) put_half(header + 32, row, chunk.m[0]);
  switch (scales) {
    case Scales::none:
    case Scales::block128:
      break;
    case Scales::half:
      for (int t = 0; t < tiles; ++t) put_half(header + 32 * t, row, chunk.d[t]);
      break;
    case Scales::half_min:
      for (int t = 0; t < tiles; ++t) {
        put_half(header + 64 * t, row, chunk.d[t]);
        put_half(header + 64 * t + 32, row, chunk.m[t]);
      }
      break;
    case Scales::exponent:
      for (int t = 0; t < tiles; ++t) header[16 * t + row] = chunk.s[t];
      break;
    case Scales::k32:
      for (int t = 0; t < tiles; ++t) header[32 + 16 * t + row] = chunk.s[t];
      break;
    case Scales::k32_min:
      for (int t = 0; t < tiles; ++t) {
        header[64 + 16 * t + row] = chunk.s[t];
        header[64 + 16 * (tiles + t) + row] = chunk.mins[t];
      }
      break;
    case Scales::k16:
      for (int t = 0; t < 2 * tiles; ++t) header[32 + 16 * t + row] = chunk.s[t];
      break;
    case Scales::k16_min:
      for (int t = 0; t < 2 * tiles; ++t) header[64 + 16 * t + row] = chunk.s[t];
      break;
  }
}

void pack_band(Format format, const uint8_t* blocks, int64_t rows, int64_t columns, uint8_t* out) {
  const Spec s = spec(format);
  const int64_t row_bytes = columns / s.block_elements * s.block_bytes;
  // Rows beyond the weight's get zero codes and scales. MXFP4's scale cannot be zero, and a subnormal one is
  // slow, so it becomes 1/2 over a code that stands for zero.
  RowChunk nothing{};
  if (s.scales == Scales::exponent) std::memset(nothing.s, 127, sizeof nothing.s);
  RowChunk chunk{};
  for (int64_t column = 0; column < columns; column += kChunkTiles * kTileColumns) {
    const int tiles = static_cast<int>(std::min<int64_t>(kChunkTiles, (columns - column) / kTileColumns));
    uint8_t* header = out;
    uint8_t* codes = out + header_bytes(s.scales, tiles);
    out = codes + tiles * tile_bytes(s);
    std::memset(header, 0, static_cast<size_t>(header_bytes(s.scales, tiles)));
    for (int row = 0; row < kBandRows; ++row) {
      if (row < rows) {
        blocks::read(format, blocks + row * row_bytes + column / s.block_elements * s.block_bytes, tiles,
                     chunk);
      }
      const RowChunk& source = row < rows ? chunk : nothing;
      put_scales(s.scales, source, tiles, row, header);
      for (int t = 0; t < tiles; ++t) put_codes(s, source.codes + 32 * t, row, codes + t * tile_bytes(s));
    }
  }
}

template <typename Element>
void pack_floats(const uint8_t* blocks, int64_t rows, int64_t columns, int64_t pair, uint8_t* out) {
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t row = 0; row < kBandRows; ++row) {
      Element value = 0;
      if (row < rows)
        std::memcpy(&value, blocks + (row * columns + column) * int64_t{sizeof value}, sizeof value);
      const int64_t place = column / pair * pair * kBandRows + row * pair + column % pair;
      std::memcpy(out + place * int64_t{sizeof value}, &value, sizeof value);
    }
  }
}

void pack_fp8(const uint8_t* blocks, int64_t rows, int64_t columns, uint8_t* out) {
  const int64_t pieces = columns / kFp8Columns, block_bytes = spec(Format::fp8).block_bytes;
  std::memset(out, 0, static_cast<size_t>(pieces * kFp8Bytes));
  for (int64_t piece = 0; piece < pieces; ++piece, out += kFp8Bytes) {
    for (int64_t row = 0; row < rows; ++row) {
      const uint8_t *block = blocks + (row * pieces + piece) * block_bytes, *codes = block + 4;
      float scale;
      std::memcpy(&scale, block, 4);
      scale *= 256.0f;
      for (int64_t column = 0; column < kFp8Columns; ++column) {
        if ((codes[column] & 0x7f) == 0x7f) scale = std::numeric_limits<float>::quiet_NaN();
        out[4 * kBandRows + column * kBandRows + row] = codes[column];
      }
      std::memcpy(out + 4 * row, &scale, 4);
    }
  }
}

}  // namespace

void check_shape(Format format, int64_t rows, int64_t columns) {
  const Spec s = spec(format);
  if (s.name == nullptr) {
    throw std::invalid_argument(std::string("there is no packed layout for ") + info(format).name);
  }
  const int64_t step = std::max(kTileColumns, s.block_elements);
  if (rows < 1 || columns < 1 || rows >= int64_t{1} << 31 || columns >= int64_t{1} << 31) {
    throw std::invalid_argument("a packed weight has 1 to 2^31 - 1 rows and columns, not " +
                                std::to_string(rows) + " x " + std::to_string(columns));
  }
  if (columns % step) {
    throw std::invalid_argument(std::string(s.name) + " packs rows of a multiple of " + std::to_string(step) +
                                " columns, not " + std::to_string(columns));
  }
}

int64_t packed_bytes(Format format, int64_t rows, int64_t columns) {
  check_shape(format, rows, columns);
  return (rows + kBandRows - 1) / kBandRows * band_bytes(format, columns);
}

int64_t file_bytes(Format format, int64_t rows, int64_t columns) {
  check_shape(format, rows, columns);
  return rows * (columns / spec(format).block_elements) * spec(format).block_bytes;
}

void pack(Format format, int64_t rows, int64_t columns, const uint8_t* blocks, uint8_t* out) {
  check_shape(format, rows, columns);
  const int64_t bands = (rows + kBandRows - 1) / kBandRows, stride = band_bytes(format, columns);
  const int64_t row_bytes = columns / spec(format).block_elements * spec(format).block_bytes;
  runtime::Pool::instance().parallel_for(bands, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t band = begin; band < end; ++band) {
      const uint8_t* source = blocks + band * kBandRows * row_bytes;
      const int64_t here = std::min<int64_t>(kBandRows, rows - band * kBandRows);
      uint8_t* target = out + band * stride;
      switch (format) {
        case Format::f32:
          pack_floats<uint32_t>(source, here, columns, 1, target);
          break;
        case Format::f16:
          pack_floats<uint16_t>(source, here, columns, 1, target);
          break;
        case Format::bf16:
          pack_floats<uint16_t>(source, here, columns, 2, target);
          break;
        case Format::fp8:
          pack_fp8(source, here, columns, target);
          break;
        default:
          pack_band(format, source, here, columns, target);
      }
    }
  });
}

}  // namespace ktc::kernels
