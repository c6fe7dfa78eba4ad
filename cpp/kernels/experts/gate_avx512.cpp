// What experts need beside the linear kernels, for AVX-512.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/experts/gate.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const ExpertKernels expert_kernels_avx512;
const ExpertKernels expert_kernels_avx512 = KTC_EXPERT_KERNELS;

}  // namespace ktc::kernels
