// The integer linear kernels for AMX: few tokens as on AVX-512 VNNI, many on tiles.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/linear/direct.inl.hpp"
#include "kernels/linear/panel_amx.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const IntegerKernels integer_kernels_amx;
const IntegerKernels integer_kernels_amx = {
    quantize, {KTC_EACH_INTEGER_FORMAT(direct)}, {KTC_EACH_INTEGER_FORMAT(panel_amx)}, 15};

}  // namespace ktc::kernels
