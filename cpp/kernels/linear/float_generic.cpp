// The float linear kernels for the platform's baseline.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/generic.inl.hpp"
#include "kernels/linear/float.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const FloatKernels float_kernels_generic;
const FloatKernels float_kernels_generic = {{KTC_EACH_FLOAT_FORMAT(multiply_floats)}};

}  // namespace ktc::kernels
