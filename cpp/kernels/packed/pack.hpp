// Packing of file blocks into the r16 layout, and back into floats. All functions are plain: no Python, no
// exceptions but std::invalid_argument from the checks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/packed/format.hpp"

namespace ktc::kernels {

// Throws std::invalid_argument, with the reason, when a weight of this shape cannot be packed: columns must
// be a multiple of 32 and of the format's block, and sizes positive and below 2^31.
void check_shape(Format format, int64_t rows, int64_t columns);

// Bytes of the packed weight; check_shape's errors.
int64_t packed_bytes(Format format, int64_t rows, int64_t columns);

// Bytes of the weight's file blocks.
int64_t file_bytes(Format format, int64_t rows, int64_t columns);

// Writes the packed weight: blocks[file_bytes] -> out[packed_bytes]. Uses the pool.
void pack(Format format, int64_t rows, int64_t columns, const uint8_t* blocks, uint8_t* out);

// Row `row` as floats, bit-equal to the format's published dequantisation: out[columns].
void unpack_row(const PackedWeight& weight, int64_t row, float* out);

}  // namespace ktc::kernels
