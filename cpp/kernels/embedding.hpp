// Rows of a weight as floats, one for each token id.
#pragma once

#include <cstdint>

#include "kernels/packed/format.hpp"

namespace ktc::kernels {

// out[tokens, columns] from a packed weight. Throws std::out_of_range for an id outside [0, rows).
void embedding(const PackedWeight& weight, const int64_t* ids, int64_t tokens, float* out);

// The same from a weight's file blocks.
void embedding_blocks(Format format, const uint8_t* blocks, int64_t rows, int64_t columns, const int64_t* ids,
                      int64_t tokens, float* out);

}  // namespace ktc::kernels
