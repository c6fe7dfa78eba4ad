// Norms, rotary embedding and elementwise functions for AVX2.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx2.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/vector/vector.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const VectorKernels vector_kernels_avx2;
const VectorKernels vector_kernels_avx2 = KTC_VECTOR_KERNELS;

}  // namespace ktc::kernels
