// Turns float32 into blocks of F32, F16, BF16, Q4_0, Q8_0, Q4_K, Q6_K and FP8, on all threads of the pool.
#pragma once

#include <cstdint>

#include "formats/format.hpp"

namespace ktc {

// What a quantiser may find in a row.
enum class Fault : int {
  none,
  not_finite,   // NaN or infinity in a block format
  out_of_range  // a value (f16) or a block's scale (block formats) that does not fit float16
};

struct QuantizeResult {
  Fault fault = Fault::none;
  int64_t index = 0;  // of the first value at fault, or of the first value of the block at fault
};

// True for formats that quantize() writes.
bool can_quantize(Format format);

// `in` has rows * columns values, columns a multiple of the format's block; `out` has room for their blocks.
// `importance`, null or `columns` positive numbers, weighs the squared error of each column; Q4_K and Q6_K
// use it. Writes unspecified blocks where it reports a fault.
QuantizeResult quantize(Format format, const float* in, uint8_t* out, int64_t rows, int64_t columns,
                        const float* importance);

}  // namespace ktc
