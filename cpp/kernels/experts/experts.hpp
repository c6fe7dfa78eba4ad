// The routed experts of a mixture of experts over packed weights.
#pragma once

#include <cstdint>

#include "formats/format.hpp"
#include "kernels/experts/tables.hpp"

namespace ktc::kernels {

// Expert e's matrices, packed one by one (packed/format.hpp), lie packed_bytes apart: gate_up [2 inner,
// hidden], gate rows before up rows, and down [hidden, inner]. `hidden` and `inner` are multiples of 32 and
// of the formats' blocks. Where the rows of a matrix are a multiple of 64, they are packed in another order:
// 32 rows of the first half, 32 of the second, and so on, so that gate rows and the up rows that they meet
// are read in one run (layout r16.experts).
struct Experts {
  Gate gate;
  int64_t count, hidden, inner;
  Format gate_up_format, down_format;
  const uint8_t *gate_up, *down;          // 64-byte aligned
  const float *gate_up_bias, *down_bias;  // [count, 2 inner] and [count, hidden], or null
};

// Throws std::invalid_argument, with the reason, for sizes that cannot be packed or multiplied.
void check_experts(const Experts& experts);

// Bytes of the caller's scratch that a call with so many tokens takes.
int64_t experts_workspace(const Experts& experts, int64_t tokens, int64_t chosen);

// y[tokens, hidden] = the sum over each token's `chosen` experts, in the order of the experts' numbers, of
// weight * down(gate(gate_up(x))): x[tokens, hidden], indices and weights [tokens, chosen], all contiguous.
// x and y do not overlap.
//
// As in `linear`, quantised weights meet int8 activations, here those of x and those after the gate, or bf16
// ones on tiles (tiles.hpp), where a level has them and there are enough tokens an expert; weights in bf16
// and fp8 meet floats, or bf16 for those experts that have enough tokens (linear/rounded.hpp). A token's
// result depends on the other tokens by these choices alone, and not on the number of threads.
//
// Throws std::out_of_range, before anything is written, for an index outside [0, count).
void experts(const Experts& experts, const float* x, const int64_t* indices, const float* weights,
             int64_t tokens, int64_t chosen, float* y);

}  // namespace ktc::kernels
