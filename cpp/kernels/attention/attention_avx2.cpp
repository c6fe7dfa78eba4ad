// The attention kernels for AVX2.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx2.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/simd/transpose_avx2.inl.hpp"
#include "kernels/attention/attention.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const AttentionKernels attention_kernels_avx2;
const AttentionKernels attention_kernels_avx2 = {write_cache, attend, stream, combine};

}  // namespace ktc::kernels
