// Norms, rotary embedding and elementwise functions for the platform's baseline.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/generic.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/vector/vector.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const VectorKernels vector_kernels_generic;
const VectorKernels vector_kernels_generic = KTC_VECTOR_KERNELS;

}  // namespace ktc::kernels
