// The two gated layers of a feed-forward block in one pass: f(x * gate^T) times x * up^T.
#pragma once

#include <cstdint>

#include "kernels/experts/tables.hpp"
#include "kernels/packed/format.hpp"

namespace ktc::kernels {

// Whether linear_gated takes such a weight: quantised, gate rows and then up rows, both a multiple of 32.
bool can_gate(const PackedWeight& weight);

// The activations of the layer that follows, [tokens, weight.rows / 2], quantised as quantize_activations
// would for so many tokens, from those of this one. The same bits as three separate steps give, without the
// results of the two products ever leaving the caches.
//
// `records` are of quantize_activations for the same number of tokens; `bias` is [weight.rows] or null;
// `next` is the format of the weight of the layer that follows.
void linear_gated(const PackedWeight& weight, const uint8_t* records, int64_t tokens, const float* bias,
                  Gate gate, Format next, uint8_t* out);

}  // namespace ktc::kernels
