// The integer linear kernels for AVX2.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx2.inl.hpp"
#include "kernels/linear/panel.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const IntegerKernels integer_kernels_avx2;
const IntegerKernels integer_kernels_avx2 = {
    quantize, {KTC_EACH_INTEGER_FORMAT(direct)}, {KTC_EACH_INTEGER_FORMAT(many)}, 12};

}  // namespace ktc::kernels
