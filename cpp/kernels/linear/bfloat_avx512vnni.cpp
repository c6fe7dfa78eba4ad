// The linear kernels of bf16 and fp8 weights on AVX-512 BF16.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/linear/bfloat.inl.hpp"
#include "kernels/linear/fp8_few.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const RoundedKernels rounded_kernels_avx512vnni;
const RoundedKernels rounded_kernels_avx512vnni = {
    {nullptr, nullptr, multiply_rounded<Format::bf16>, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
     nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, multiply_rounded<Format::fp8>},
    3,
    {nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
     nullptr, nullptr, nullptr, nullptr, nullptr, multiply_fp8_few}};

}  // namespace ktc::kernels
