// Conversion between float32 and float8 e4m3fn (OCP 8-bit floating point: no infinity, one NaN of each sign),
// bit for bit, without special instructions. For sources with an instruction-set suffix too: everything here
// has internal linkage.
#pragma once

#include <cstdint>

#include "formats/float16.hpp"

namespace ktc {
namespace {

[[maybe_unused]] constexpr float kLargestE4m3 = 448.0f;

// Exact: every e4m3 is a float32.
[[maybe_unused]] inline float e4m3_to_f32(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu, sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t normal = (magnitude << 20) + (120u << 23);  // exponent bias 7 -> 127
  // A subnormal counts steps of 2^-9.
  const uint32_t subnormal = float_to_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f);
  uint32_t bits = magnitude < 0x08u ? subnormal : normal;
  bits = magnitude == 0x7fu ? 0x7fc00000u : bits;
  return bits_to_float(sign | bits);
}

// Rounds to nearest, ties to even; what is larger than 448, in magnitude, becomes 448. For finite values.
[[maybe_unused]] inline uint8_t f32_to_e4m3(float x) {
  const uint32_t bits = float_to_bits(x), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (120u << 23) + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  // Adding 2^14 aligns the value to steps of 2^-9, the subnormals' unit, and the addition rounds.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0x1p14f) - 0x46800000u;
  uint32_t code = magnitude < 0x3c800000u ? subnormal : normal;  // 2^-6, the smallest normal
  code = magnitude >= 0x43e00000u ? 0x7eu : code;                // 448
  return static_cast<uint8_t>(bits >> 24 & 0x80u) | static_cast<uint8_t>(code);
}

}  // namespace
}  // namespace ktc
