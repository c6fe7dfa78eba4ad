// The integer linear kernels for the platform's baseline.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/generic.inl.hpp"
#include "kernels/linear/panel.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const IntegerKernels integer_kernels_generic;
const IntegerKernels integer_kernels_generic = {
    quantize, {KTC_EACH_INTEGER_FORMAT(direct)}, {KTC_EACH_INTEGER_FORMAT(many)}, 32};

}  // namespace ktc::kernels
