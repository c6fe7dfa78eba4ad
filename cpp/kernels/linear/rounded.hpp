// Many tokens on weights that are bf16 or convert to it exactly: activations are rounded to bf16, products
// are summed as floats.
#pragma once

#include "kernels/linear/tables.hpp"

namespace ktc::kernels {

// As FloatKernels::multiply: bands [begin, end) for tokens [first, last), activations as floats.
using FloatKernel = void (*)(const LinearCall& call, int64_t begin, int64_t end, int64_t first, int64_t last);

struct RoundedKernels {
  FloatKernel multiply[kFormats];  // null for other formats
  int64_t least_tokens;            // from so many on they are the faster way
  FloatKernel few[kFormats];       // for fewer, with activations as they are; null where float_kernels do
};
// Bands that meet the tokens of a run at once: rounding is done anew for so many bands.
inline constexpr int kRoundedBands = 8;

#ifdef KTC_X86
extern const RoundedKernels rounded_kernels_avx512vnni;
#endif

// What multiplies `tokens` tokens (of a weight) with float weights: a kernel of the level that rounds
// activations, if it has one for the format and so many tokens, else one that takes them as they are.
FloatKernel float_product(Format format, int64_t tokens);

}  // namespace ktc::kernels
