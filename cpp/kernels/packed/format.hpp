// The packed weight layout r16: which formats it takes, and how their bytes lie.
//
// A weight [rows, columns] is cut in bands of 16 rows; the last band is padded with zeros. Bands follow each
// other. A band of a quantised format is a sequence of chunks of up to 256 columns (8 tiles of 32), each a
// header of scales, padded to 64 bytes, and then its tiles. A tile is 16 rows x 32 columns of codes, seen as
// 8 lines: line j holds columns 4j..4j+3, byte 4 * row + column % 4. Lines are stored in planes of 64-byte
// pieces:
//   low plane   8 bits: piece j = line j
//               4 bits: piece i = line 2i in the low nibbles, line 2i+1 in the high ones
//               2 bits: piece i = lines 4i..4i+3, from the lowest bits up
//   high plane  2 bits: piece i = lines 4i..4i+3;  1 bit: bit j of the one piece = line j
// so that one shift and one mask yield a line, which is what vpdpbusd, vpmaddubsw (two halves of 8 rows) and,
// 16 lines of a chunk together, an AMX B tile want. Codes and scales are the file's; packing is exact and
// loses nothing.
//
// Floats lie in bands too: f32 16 rows a column; f16 the same, two columns a line; bf16 16 rows of pairs of
// columns; fp8 in pieces of 128 columns, each 16 float32 scales and then 16 rows a column. The scale is 256
// times the file's, because the kernels read a code's bits as a float16, whose exponent has another bias; it
// is a NaN where one of the block's codes is.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/format.hpp"

namespace ktc::kernels {

// What a chunk's header holds; h(r) is a float16, b(r) a byte, of the band's row r.
enum class Scales : int {
  none,      // a float format
  block128,  // 128 columns: d, f[16]                       weight = d * code, a float
  half,      // a tile: d, h[16]                           weight = d * (code - offset)
  half_min,  // a tile: d, m, h[16] each                   weight = d * code + m
  exponent,  // a tile: e, b[16]                           weight = 2^(e - 128) * (code - offset)
  k32,       // d, h[16]; a tile: s, b[16] signed          weight = d * s * (code - offset)
  k32_min,   // d, dmin, h[16] each; s, b[8][16]; m, b[8][16]   weight = d * s * code - dmin * m
  k16,       // d, h[16]; half a tile: s, b[16] signed     weight = d * s * (code - offset)
  k16_min,  // d, dmin, h[16] each; half a tile: b[16], s low nibble, m high  weight = d * s * code - dmin * m
};

struct Spec {
  const char* name;
  int block_elements;  // of the file's blocks
  int block_bytes;
  int low_bits;
  int high_bits;
  Scales scales;
  int offset_log2;       // offset of the unsigned codes is 2^offset_log2; -1 for none
  int largest;           // largest unsigned code
  const uint8_t* table;  // 4-bit formats whose codes index values: value + offset
};

// Values of IQ4_NL and IQ4_XS plus 128 (the ggml format's table), and of MXFP4 (OCP Microscaling, E2M1
// doubled) plus 16.
static constexpr uint8_t kTableIq4[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                          129, 141, 153, 166, 181, 197, 217, 241};
static constexpr uint8_t kTableMxfp4[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

static constexpr Spec kSpecs[kFormats] = {
    {"f32", 1, 4, 0, 0, Scales::none, -1, 0, nullptr},
    {"f16", 1, 2, 0, 0, Scales::none, -1, 0, nullptr},
    {"bf16", 1, 2, 0, 0, Scales::none, -1, 0, nullptr},
    {"q4_0", 32, 18, 4, 0, Scales::half, 3, 15, nullptr},
    {"q4_1", 32, 20, 4, 0, Scales::half_min, -1, 15, nullptr},
    {"q5_0", 32, 22, 4, 1, Scales::half, 4, 31, nullptr},
    {"q5_1", 32, 24, 4, 1, Scales::half_min, -1, 31, nullptr},
    {"q8_0", 32, 34, 8, 0, Scales::half, 7, 255, nullptr},
    {"q2_k", 256, 84, 2, 0, Scales::k16_min, -1, 3, nullptr},
    {"q3_k", 256, 110, 2, 1, Scales::k16, 2, 7, nullptr},
    {"q4_k", 256, 144, 4, 0, Scales::k32_min, -1, 15, nullptr},
    {"q5_k", 256, 176, 4, 1, Scales::k32_min, -1, 31, nullptr},
    {"q6_k", 256, 210, 4, 2, Scales::k16, 5, 63, nullptr},
    {"iq4_nl", 32, 18, 4, 0, Scales::half, 7, 241, kTableIq4},
    {"iq4_xs", 256, 136, 4, 0, Scales::k32, 7, 241, kTableIq4},
    {"mxfp4", 32, 17, 4, 0, Scales::exponent, 4, 28, kTableMxfp4},
    {"fp8", 128, 132, 0, 0, Scales::block128, -1, 0, nullptr},
};

static constexpr Spec spec(Format format) {
  return kSpecs[static_cast<int>(format)];
}

inline constexpr int kBandRows = 16;
inline constexpr int kTileColumns = 32;
inline constexpr int kChunkTiles = 8;
// Of fp8: columns that share a scale, and bytes of their piece of a band.
inline constexpr int kFp8Columns = 128;
inline constexpr int kFp8Bytes = kBandRows * (4 + kFp8Columns);

// Whether a format's kernels take activations as they are; the others take them as int8.
static constexpr bool is_float(Format format) {
  return spec(format).low_bits == 0;
}
static constexpr bool has_min(Scales scales) {
  return scales == Scales::half_min || scales == Scales::k32_min || scales == Scales::k16_min;
}
// Formats whose kernels of many tokens may take activations in groups of 256 columns (ActivationGroup): those
// with integer scales within blocks of 256 and those with minima, where that saves the most. Others keep a
// scale for every 32.
static constexpr bool takes_groups(Format format) {
  const Scales scales = spec(format).scales;
  return scales == Scales::k16 || has_min(scales);
}
// Columns that share a scale: 16 or 32.
static constexpr int scale_columns(Scales scales) {
  return scales == Scales::k16 || scales == Scales::k16_min ? 16 : 32;
}
static constexpr int tile_bytes(const Spec& s) {
  return 64 * (s.low_bits + s.high_bits);
}

// Bytes of the header of a chunk of `tiles` tiles.
static constexpr int header_bytes(Scales scales, int tiles) {
  int bytes = 0;
  switch (scales) {
    case Scales::none:
    case Scales::block128:
      break;
    case Scales::half:
      bytes = 32 * tiles;
      break;
    case Scales::half_min:
      bytes = 64 * tiles;
      break;
    case Scales::exponent:
      bytes = 16 * tiles;
      break;
    case Scales::k32:
      bytes = 32 + 16 * tiles;
      break;
    case Scales::k32_min:
      bytes = 64 + 32 * tiles;
      break;
    case Scales::k16:
      bytes = 32 + 32 * tiles;
      break;
    case Scales::k16_min:
      bytes = 64 + 32 * tiles;
      break;
  }
  return (bytes + 63) / 64 * 64;
}

// Bytes of one band of `columns` columns (a multiple of 32).
static constexpr int64_t band_bytes(Format format, int64_t columns) {
  const Spec s = spec(format);
  if (s.scales == Scales::block128) return columns / kFp8Columns * kFp8Bytes;
  if (s.scales == Scales::none) return columns * kBandRows * s.block_bytes;
  const int64_t tiles = columns / kTileColumns, chunks = tiles / kChunkTiles;
  const int rest = static_cast<int>(tiles % kChunkTiles);
  return chunks * header_bytes(s.scales, kChunkTiles) + (rest ? header_bytes(s.scales, rest) : 0) +
         tiles * tile_bytes(s);
}

// A packed weight, as kernels take it; `data` is 64-byte aligned.
struct PackedWeight {
  Format format;
  int64_t rows;
  int64_t columns;
  const uint8_t* data;

  int64_t bands() const { return (rows + kBandRows - 1) / kBandRows; }
};

}  // namespace ktc::kernels
