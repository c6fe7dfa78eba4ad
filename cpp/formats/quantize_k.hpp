// The quantisers of one block of the k-formats, one entry point an instruction-set level; quantize.cpp picks.
#pragma once

#include <cstdint>

namespace ktc {

// Each writes the block of 256 finite values `x` to `out`, minimising the squared error, weighted by the 256
// positive numbers `weights` unless that is null. Returns false when a scale does not fit float16. All levels
// agree to the bit.
using QuantizeBlock = bool(const float* x, const float* weights, uint8_t* out);

QuantizeBlock quantize_q4_k_generic, quantize_q4_k_avx2;
QuantizeBlock quantize_q6_k_generic, quantize_q6_k_avx2;

}  // namespace ktc
