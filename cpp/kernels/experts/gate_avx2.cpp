// What experts need beside the linear kernels, for AVX2.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx2.inl.hpp"
#include "kernels/experts/gate.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const ExpertKernels expert_kernels_avx2;
const ExpertKernels expert_kernels_avx2 = KTC_EXPERT_KERNELS;

}  // namespace ktc::kernels
