// The attention kernels for the platform's baseline.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/generic.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/simd/transpose_generic.inl.hpp"
#include "kernels/attention/attention.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const AttentionKernels attention_kernels_generic;
const AttentionKernels attention_kernels_generic = {write_cache, attend, stream, combine};

}  // namespace ktc::kernels
