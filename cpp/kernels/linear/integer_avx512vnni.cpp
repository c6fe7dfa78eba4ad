// The integer linear kernels for AVX-512 VNNI.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/linear/group.inl.hpp"
#include "kernels/linear/panel.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const IntegerKernels integer_kernels_avx512vnni;
const IntegerKernels integer_kernels_avx512vnni = {
    quantize,        {KTC_EACH_INTEGER_FORMAT(direct)}, {KTC_EACH_INTEGER_FORMAT(many)}, 24,
    quantize_groups, {KTC_EACH_INTEGER_FORMAT(kGroup)}};

}  // namespace ktc::kernels
