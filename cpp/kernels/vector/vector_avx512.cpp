// Norms, rotary embedding and elementwise functions for AVX-512.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/vector/vector.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const VectorKernels vector_kernels_avx512;
const VectorKernels vector_kernels_avx512 = KTC_VECTOR_KERNELS;

}  // namespace ktc::kernels
