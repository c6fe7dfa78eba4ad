// The latent attention kernels for AVX-512.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/simd/transpose_avx512.inl.hpp"
#include "kernels/latent/latent.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const LatentKernels latent_kernels_avx512;
const LatentKernels latent_kernels_avx512 = {write_cache, attend_latent, attend_expanded, kUnpack};

}  // namespace ktc::kernels
