// One function a format that turns a block into float32, in the order of operations of the GGUF reference
// implementation (the gguf Python package), so that results agree with it bit for bit.
//
// Loops are plain so that the compiler vectorises them; the baseline's vectors already keep up with memory,
// so there is no version per instruction set. Names as in the format's description: d scale, m minimum, q
// codes.
#pragma once

#include "formats/float16.hpp"
#include "formats/float8.hpp"
#include "formats/format.hpp"

namespace ktc {
namespace {

// 4-bit code -> value of IQ4_NL and IQ4_XS, and (doubled) of MXFP4's e2m1.
alignas(64) constexpr float kNonlinear4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};
alignas(64) constexpr float kE2m1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// The sixteen 6-bit numbers of Q4_K and Q5_K: 8 scales, 8 minima.
inline void unpack_scales_minima(const uint8_t* packed, float* scales, float* minima) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = static_cast<float>(packed[i] & 63);
    minima[i] = static_cast<float>(packed[i + 4] & 63);
    scales[i + 4] = static_cast<float>((packed[i + 8] & 15) | (packed[i] >> 2 & 48));
    minima[i + 4] = static_cast<float>(packed[i + 8] >> 4 | (packed[i + 4] >> 2 & 48));
  }
}

inline void block_q4_0(const uint8_t* p, float* y) {
  const float d = load_f16(p);
  const uint8_t* q = p + 2;
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>((q[j] & 15) - 8);
    y[j + 16] = d * static_cast<float>((q[j] >> 4) - 8);
  }
}

inline void block_q4_1(const uint8_t* p, float* y) {
  const float d = load_f16(p), m = load_f16(p + 2);
  const uint8_t* q = p + 4;
  for (int j = 0; j < 16; ++j) {
    y[j] = d * static_cast<float>(q[j] & 15) + m;
    y[j + 16] = d * static_cast<float>(q[j] >> 4) + m;
  }
}

// The 5-bit codes of Q5_0 and Q5_1: 4 bytes of high bits, then 16 bytes of nibbles.
inline void unpack_5bit(const uint8_t* p, int* q) {
  const uint32_t high = load_u16(p) | static_cast<uint32_t>(load_u16(p + 2)) << 16;
  const uint8_t* low = p + 4;
  for (int j = 0; j < 16; ++j) {
    q[j] = (low[j] & 15) | static_cast<int>((high >> j & 1) << 4);
    q[j + 16] = low[j] >> 4 | static_cast<int>((high >> (j + 16) & 1) << 4);
  }
}

inline void block_q5_0(const uint8_t* p, float* y) {
  const float d = load_f16(p);
  int q[32];
  unpack_5bit(p + 2, q);
  for (int j = 0; j < 32; ++j) y[j] = d * static_cast<float>(q[j] - 16);
}

inline void block_q5_1(const uint8_t* p, float* y) {
  const float d = load_f16(p), m = load_f16(p + 2);
  int q[32];
  unpack_5bit(p + 4, q);
  for (int j = 0; j < 32; ++j) y[j] = d * static_cast<float>(q[j]) + m;
}

inline void block_q8_0(const uint8_t* p, float* y) {
  const float d = load_f16(p);
  for (int j = 0; j < 32; ++j) y[j] = static_cast<float>(static_cast<int8_t>(p[2 + j])) * d;
}

inline void block_q2_k(const uint8_t* p, float* y) {
  const float d = load_f16(p + 80), dmin = load_f16(p + 82);
  const uint8_t* q = p + 16;
  for (int sub = 0; sub < 16; ++sub) {  // 16 values each; four of them share 32 bytes at different shifts
    const float dl = d * static_cast<float>(p[sub] & 15), ml = dmin * static_cast<float>(p[sub] >> 4);
    const uint8_t* codes = q + (sub / 8) * 32 + (sub % 2) * 16;
    const int shift = (sub / 2 % 4) * 2;
    for (int j = 0; j < 16; ++j) y[sub * 16 + j] = dl * static_cast<float>(codes[j] >> shift & 3) - ml;
  }
}

inline void block_q3_k(const uint8_t* p, float* y) {
  const uint8_t *mask = p, *q = p + 32, *packed = p + 96;
  const float d = load_f16(p + 108);
  for (int sub = 0; sub < 16; ++sub) {
    const int low = packed[sub % 8] >> (sub / 8 * 4) & 15, high = packed[8 + sub % 4] >> (sub / 4 * 2) & 3;
    const float dl = d * static_cast<float>((low | high << 4) - 32);
    const uint8_t *codes = q + (sub / 8) * 32 + (sub % 2) * 16, *bits = mask + (sub % 2) * 16;
    const int shift = (sub / 2 % 4) * 2, bit = sub / 2;
    for (int j = 0; j < 16; ++j) {  // a cleared mask bit subtracts 4
      y[sub * 16 + j] = dl * static_cast<float>((codes[j] >> shift & 3) - (4 - (bits[j] >> bit & 1) * 4));
    }
  }
}

inline void block_q4_k(const uint8_t* p, float* y) {
  const float d = load_f16(p), dmin = load_f16(p + 2);
  float scales[8], minima[8];
  unpack_scales_minima(p + 4, scales, minima);
  for (int pair = 0; pair < 4; ++pair) {  // two sub-blocks of 32 in the nibbles of 32 bytes
    const uint8_t* q = p + 16 + pair * 32;
    const float dl = d * scales[pair * 2], ml = dmin * minima[pair * 2];
    const float dh = d * scales[pair * 2 + 1], mh = dmin * minima[pair * 2 + 1];
    float* out = y + pair * 64;
    for (int j = 0; j < 32; ++j) {
      out[j] = dl * static_cast<float>(q[j] & 15) - ml;
      out[j + 32] = dh * static_cast<float>(q[j] >> 4) - mh;
    }
  }
}

inline void block_q5_k(const uint8_t* p, float* y) {
  const float d = load_f16(p), dmin = load_f16(p + 2);
  const uint8_t* high = p + 16;
  float scales[8], minima[8];
  unpack_scales_minima(p + 4, scales, minima);
  for (int sub = 0; sub < 8; ++sub) {
    const uint8_t* q = p + 48 + (sub / 2) * 32;
    const float dl = d * scales[sub], ml = dmin * minima[sub];
    const int shift = (sub % 2) * 4;
    for (int j = 0; j < 32; ++j) {
      y[sub * 32 + j] = dl * static_cast<float>((q[j] >> shift & 15) | (high[j] >> sub & 1) << 4) - ml;
    }
  }
}

inline void block_q6_k(const uint8_t* p, float* y) {
  const float d = load_f16(p + 208);
  for (int sub = 0; sub < 16; ++sub) {  // 16 values each
    const int half = sub / 8, within = sub % 8 * 16;
    const uint8_t* low = p + half * 64 + within % 64;
    const uint8_t* high = p + 128 + half * 32 + within % 32;
    const int low_shift = within / 64 * 4, high_shift = within / 32 * 2;
    const float dl = d * static_cast<float>(static_cast<int8_t>(p[192 + sub]));
    for (int j = 0; j < 16; ++j) {
      y[sub * 16 + j] =
          dl * static_cast<float>(((low[j] >> low_shift & 15) | (high[j] >> high_shift & 3) << 4) - 32);
    }
  }
}

inline void block_iq4_nl(const uint8_t* p, float* y) {
  const float d = load_f16(p);
  const uint8_t* q = p + 2;
  for (int j = 0; j < 16; ++j) {
    y[j] = d * kNonlinear4[q[j] & 15];
    y[j + 16] = d * kNonlinear4[q[j] >> 4];
  }
}

inline void block_iq4_xs(const uint8_t* p, float* y) {
  const float d = load_f16(p);
  const uint32_t high = load_u16(p + 2);
  for (int sub = 0; sub < 8; ++sub) {
    const int low = p[4 + sub / 2] >> (sub % 2 * 4) & 15;
    const float dl = d * static_cast<float>((low | static_cast<int>(high >> (2 * sub) & 3) << 4) - 32);
    const uint8_t* q = p + 8 + sub * 16;
    for (int j = 0; j < 16; ++j) {
      y[sub * 32 + j] = dl * kNonlinear4[q[j] & 15];
      y[sub * 32 + j + 16] = dl * kNonlinear4[q[j] >> 4];
    }
  }
}

inline void block_mxfp4(const uint8_t* p, float* y) {
  const uint32_t e = p[0];
  // Half of 2^(e-127), since the table holds doubled values; the two smallest are subnormal.
  const float d = bits_to_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
  const uint8_t* q = p + 1;
  for (int j = 0; j < 16; ++j) {
    y[j] = d * kE2m1Doubled[q[j] & 15];
    y[j + 16] = d * kE2m1Doubled[q[j] >> 4];
  }
}

inline void block_fp8(const uint8_t* p, float* y) {
  float d;
  __builtin_memcpy(&d, p, 4);
  for (int j = 0; j < 128; ++j) y[j] = e4m3_to_f32(p[4 + j]) * d;
}

template <int kElements, int kBytes, void (*kBlock)(const uint8_t*, float*)>
void each(const uint8_t* in, float* out, int64_t blocks) {
  for (int64_t i = 0; i < blocks; ++i) kBlock(in + i * kBytes, out + i * kElements);
}

void dequantize_blocks(Format format, const uint8_t* in, float* out, int64_t blocks) {
  switch (format) {
    case Format::f32:
      __builtin_memcpy(out, in, static_cast<size_t>(blocks) * 4);
      return;
    case Format::f16:
      for (int64_t i = 0; i < blocks; ++i) out[i] = load_f16(in + i * 2);
      return;
    case Format::bf16:
      for (int64_t i = 0; i < blocks; ++i) out[i] = bf16_to_f32(load_u16(in + i * 2));
      return;
    case Format::q4_0:
      return each<32, 18, block_q4_0>(in, out, blocks);
    case Format::q4_1:
      return each<32, 20, block_q4_1>(in, out, blocks);
    case Format::q5_0:
      return each<32, 22, block_q5_0>(in, out, blocks);
    case Format::q5_1:
      return each<32, 24, block_q5_1>(in, out, blocks);
    case Format::q8_0:
      return each<32, 34, block_q8_0>(in, out, blocks);
    case Format::q2_k:
      return each<256, 84, block_q2_k>(in, out, blocks);
    case Format::q3_k:
      return each<256, 110, block_q3_k>(in, out, blocks);
    case Format::q4_k:
      return each<256, 144, block_q4_k>(in, out, blocks);
    case Format::q5_k:
      return each<256, 176, block_q5_k>(in, out, blocks);
    case Format::q6_k:
      return each<256, 210, block_q6_k>(in, out, blocks);
    case Format::iq4_nl:
      return each<32, 18, block_iq4_nl>(in, out, blocks);
    case Format::iq4_xs:
      return each<256, 136, block_iq4_xs>(in, out, blocks);
    case Format::mxfp4:
      return each<32, 17, block_mxfp4>(in, out, blocks);
    case Format::fp8:
      return each<128, 132, block_fp8>(in, out, blocks);
  }
}

}  // namespace
}  // namespace ktc
