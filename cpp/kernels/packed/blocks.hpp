// Reads blocks as they lie in a GGUF file (the ggml formats) into codes and scales, for packing.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/packed/format.hpp"

namespace ktc::kernels {

// Up to 256 columns of one row: unsigned codes and the raw scales of each tile or half tile.
struct RowChunk {
  uint8_t codes[256];
  uint16_t d[kChunkTiles];  // float16: one a tile, or d[0] alone for the k formats
  uint16_t m[kChunkTiles];
  uint8_t s[16];  // one a tile, or one a half tile for k16 and k16_min
  uint8_t mins[8];
};

namespace blocks {

inline uint16_t load16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}

// 16 bytes whose low nibbles are columns 0..15 and high nibbles 16..31.
inline void nibbles(const uint8_t* q, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = q[i] & 15;
    codes[16 + i] = q[i] >> 4;
  }
}

inline void fifth_bits(const uint8_t* p, uint8_t* codes) {
  uint32_t bits;
  std::memcpy(&bits, p, 4);
  for (int i = 0; i < 32; ++i) codes[i] |= static_cast<uint8_t>((bits >> i & 1) << 4);
}

// The eight 6-bit scales and mins of Q4_K and Q5_K in 12 bytes.
inline void six_bit_pairs(const uint8_t* p, uint8_t* scales, uint8_t* mins) {
  for (int j = 0; j < 4; ++j) {
    scales[j] = p[j] & 63;
    mins[j] = p[j + 4] & 63;
    scales[j + 4] = static_cast<uint8_t>((p[j + 8] & 15) | (p[j] >> 6) << 4);
    mins[j + 4] = static_cast<uint8_t>((p[j + 8] >> 4) | (p[j + 4] >> 6) << 4);
  }
}

inline void q2_k(const uint8_t* p, RowChunk& out) {
  std::memcpy(out.s, p, 16);
  for (int i = 0; i < 256; ++i) {
    out.codes[i] = p[16 + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
  }
  out.d[0] = load16(p + 80);
  out.m[0] = load16(p + 82);
}

inline void q3_k(const uint8_t* p, RowChunk& out) {
  const uint8_t *high = p, *low = p + 32, *scales = p + 96;
  for (int i = 0; i < 256; ++i) {
    const int code = (low[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3) | (high[i % 32] >> (i / 32) & 1)
                                                                                << 2;
    out.codes[i] = static_cast<uint8_t>(code);
  }
  for (int i = 0; i < 16; ++i) {
    const int bits = (scales[i % 8] >> (i / 8 * 4) & 15) | (scales[8 + i % 4] >> (i / 4 * 2) & 3) << 4;
    out.s[i] = static_cast<uint8_t>(bits - 32);
  }
  out.d[0] = load16(p + 108);
}

inline void q4_k(const uint8_t* p, RowChunk& out) {
  out.d[0] = load16(p);
  out.m[0] = load16(p + 2);
  six_bit_pairs(p + 4, out.s, out.mins);
  const uint8_t* q = p + 16;
  for (int i = 0; i < 256; ++i) out.codes[i] = q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
}

inline void q5_k(const uint8_t* p, RowChunk& out) {
  out.d[0] = load16(p);
  out.m[0] = load16(p + 2);
  six_bit_pairs(p + 4, out.s, out.mins);
  const uint8_t *high = p + 16, *q = p + 48;
  for (int i = 0; i < 256; ++i) {
    const int code = (q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15) | (high[i % 32] >> (i / 32) & 1) << 4;
    out.codes[i] = static_cast<uint8_t>(code);
  }
}

inline void q6_k(const uint8_t* p, RowChunk& out) {
  const uint8_t *low = p, *high = p + 128;
  for (int i = 0; i < 256; ++i) {
    const int n = i / 128, quarter = i / 32 % 4, l = i % 32;
    const int nibble = low[n * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
    out.codes[i] = static_cast<uint8_t>(nibble | (high[n * 32 + l] >> (2 * quarter) & 3) << 4);
  }
  std::memcpy(out.s, p + 192, 16);
  out.d[0] = load16(p + 208);
}

inline void iq4_xs(const uint8_t* p, RowChunk& out) {
  out.d[0] = load16(p);
  const uint16_t high = load16(p + 2);
  for (int i = 0; i < 8; ++i) {
    const int bits = (p[4 + i / 2] >> (i % 2 * 4) & 15) | (high >> (2 * i) & 3) << 4;
    out.s[i] = static_cast<uint8_t>(bits - 32);
    nibbles(p + 8 + 16 * i, out.codes + 32 * i);
  }
}

// One block of 32 columns, tile `tile` of the chunk.
inline void block32(Format format, const uint8_t* p, int tile, RowChunk& out) {
  uint8_t* codes = out.codes + 32 * tile;
  switch (format) {
    case Format::q4_0:
    case Format::iq4_nl:
      out.d[tile] = load16(p);
      nibbles(p + 2, codes);
      break;
    case Format::q4_1:
      out.d[tile] = load16(p);
      out.m[tile] = load16(p + 2);
      nibbles(p + 4, codes);
      break;
    case Format::q5_0:
      out.d[tile] = load16(p);
      nibbles(p + 6, codes);
      fifth_bits(p + 2, codes);
      break;
    case Format::q5_1:
      out.d[tile] = load16(p);
      out.m[tile] = load16(p + 2);
      nibbles(p + 8, codes);
      fifth_bits(p + 4, codes);
      break;
    case Format::q8_0:
      out.d[tile] = load16(p);
      for (int i = 0; i < 32; ++i) codes[i] = p[2 + i] ^ 0x80;
      break;
    case Format::mxfp4:
      out.s[tile] = p[0];
      nibbles(p + 1, codes);
      break;
    default:
      break;
  }
}

// `tiles` tiles of one row from its blocks.
inline void read(Format format, const uint8_t* p, int tiles, RowChunk& out) {
  switch (format) {
    case Format::q2_k:
      return q2_k(p, out);
    case Format::q3_k:
      return q3_k(p, out);
    case Format::q4_k:
      return q4_k(p, out);
    case Format::q5_k:
      return q5_k(p, out);
    case Format::q6_k:
      return q6_k(p, out);
    case Format::iq4_xs:
      return iq4_xs(p, out);
    default:
      for (int tile = 0; tile < tiles; ++tile)
        block32(format, p + tile * spec(format).block_bytes, tile, out);
  }
}

}  // namespace blocks
}  // namespace ktc::kernels
