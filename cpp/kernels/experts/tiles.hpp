// The routed experts on tiles of bf16, for many tokens an expert.
#pragma once

#include <cstdint>

#include "kernels/experts/experts.hpp"
#include "kernels/experts/route.hpp"

namespace ktc::kernels {

// Whether the level in force has tiles for so many tokens an expert and for the formats of both matrices.
bool experts_on_tiles(const Experts& experts, int64_t expert_tokens);

// Bytes of the workspace of a call, besides its route.
int64_t experts_tiles_workspace(const Experts& experts, int64_t tokens, int64_t chosen);

// As `experts`, for checked operands. Both sides of both products are rounded to bf16.
void experts_tiles(const Experts& experts, const Route& route, const float* x, int64_t tokens, int64_t chosen,
                   float* y, uint8_t* workspace);

}  // namespace ktc::kernels
