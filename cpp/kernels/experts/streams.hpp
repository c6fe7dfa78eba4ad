// The routed experts of a single token where memory wants to be read in several places at once.
#pragma once

#include <cstdint>

#include "kernels/experts/experts.hpp"
#include "kernels/experts/route.hpp"

namespace ktc::kernels {

// Whether the level in force reads so (linear/streams.hpp) and can: one token, whose experts all differ, and
// formats of integers.
bool experts_in_streams(const Experts& experts, const Route& route, int64_t tokens, int64_t chosen);

// As `experts`, for checked operands: the same bits as its two loops. `x` is the token's record, `inner` has
// room for one of the inner activations of every choice.
void experts_streams(const Experts& experts, const Route& route, const uint8_t* x, uint8_t* inner, float* y);

}  // namespace ktc::kernels
