// Conversion between float32 and the 16-bit formats, bit for bit as IEEE 754 says, without special
// instructions. For sources with an instruction-set suffix too: everything here has internal linkage.
#pragma once

#include <cstdint>

namespace ktc {
namespace {

[[maybe_unused]] inline float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

[[maybe_unused]] inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

// Exact: every float16 is a float32. NaN payloads are kept.
[[maybe_unused]] inline float f16_to_f32(uint16_t h) {
  const uint32_t magnitude = h & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t normal = (magnitude << 13) + (112u << 23);  // exponent bias 15 -> 127
  const uint32_t special = (magnitude << 13) | 0x7f800000u;  // infinity, NaN
  // A subnormal counts steps of 2^-24.
  const uint32_t subnormal = float_to_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t bits = magnitude >= 0x7c00u ? special : normal;
  return bits_to_float(sign | (magnitude < 0x0400u ? subnormal : bits));
}

// Rounds to nearest, ties to even; from 65520 on the result is infinity. NaN stays NaN.
[[maybe_unused]] inline uint16_t f32_to_f16(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Adding 0.5 aligns the value to steps of 2^-24, the subnormals' unit, and the addition rounds.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t nan = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? nan : half;
  return static_cast<uint16_t>(sign | half);
}

[[maybe_unused]] inline float bf16_to_f32(uint16_t b) {
  return bits_to_float(static_cast<uint32_t>(b) << 16);
}

// Rounds to nearest, ties to even. NaN becomes a quiet NaN.
[[maybe_unused]] inline uint16_t f32_to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

[[maybe_unused]] inline uint16_t load_u16(const uint8_t* p) {
  return static_cast<uint16_t>(p[0] | p[1] << 8);
}

[[maybe_unused]] inline void store_u16(uint8_t* p, uint16_t v) {
  p[0] = static_cast<uint8_t>(v);
  p[1] = static_cast<uint8_t>(v >> 8);
}

// The float16 at p, as blocks store their scales.
[[maybe_unused]] inline float load_f16(const uint8_t* p) {
  return f16_to_f32(load_u16(p));
}

}  // namespace
}  // namespace ktc
