// Cosine and sine tables of rotary position embeddings.
#pragma once

#include <cstdint>

namespace ktc::kernels {

// cos[tokens, 2 * half] and sin likewise: of positions[t] * frequencies[i] (a product of floats) times
// `scaling`; the second half of a row repeats the first. Correctly rounded but for double rounding.
void rotary(const int64_t* positions, int64_t tokens, const float* frequencies, int64_t half, float scaling,
            float* cos, float* sin);

}  // namespace ktc::kernels
