// The attention kernels for AVX-512.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/simd/transpose_avx512.inl.hpp"
#include "kernels/attention/attention.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const AttentionKernels attention_kernels_avx512;
const AttentionKernels attention_kernels_avx512 = {write_cache, attend, stream, combine};

}  // namespace ktc::kernels
