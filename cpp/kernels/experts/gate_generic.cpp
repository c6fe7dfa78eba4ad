// What experts need beside the linear kernels, for the platform's baseline.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/generic.inl.hpp"
#include "kernels/experts/gate.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const ExpertKernels expert_kernels_generic;
const ExpertKernels expert_kernels_generic = KTC_EXPERT_KERNELS;

}  // namespace ktc::kernels
