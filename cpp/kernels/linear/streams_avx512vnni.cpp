// One token times bands in several places of memory, for AVX-512 VNNI.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/linear/streams.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const StreamKernels stream_kernels_avx512vnni;
const StreamKernels stream_kernels_avx512vnni = {{KTC_EACH_INTEGER_FORMAT(stream_bands)}};

}  // namespace ktc::kernels
