// The number formats of weights, by the names and the block layouts of the GGUF format; fp8, which GGUF has
// not, is a float32 scale and 128 float8 e4m3fn of a row.
#pragma once

#include <cstdint>
#include <string_view>

namespace ktc {

enum class Format : int {
  f32,
  f16,
  bf16,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  iq4_nl,
  iq4_xs,
  mxfp4,
  fp8,
};
inline constexpr int kFormats = 17;

// A row is a whole number of blocks, each of `elements` values in `bytes` bytes.
struct FormatInfo {
  const char* name;
  int elements;
  int bytes;
};

const FormatInfo& info(Format format);

// The format called `name`; throws std::invalid_argument which lists all names when there is none.
Format parse_format(std::string_view name);

}  // namespace ktc
