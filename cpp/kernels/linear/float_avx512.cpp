// The float linear kernels for AVX-512.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/linear/float.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const FloatKernels float_kernels_avx512;
const FloatKernels float_kernels_avx512 = {{KTC_EACH_FLOAT_FORMAT(multiply_floats)}};

}  // namespace ktc::kernels
