// Turns blocks of any number format into float32, on all threads of the pool.
#pragma once

#include <cstdint>

#include "formats/format.hpp"

namespace ktc {

// `in` has blocks * info(format).bytes bytes, `out` room for blocks * info(format).elements values; they do
// not overlap. Bit-equal to the gguf package.
void dequantize(Format format, const uint8_t* in, float* out, int64_t blocks);

}  // namespace ktc
