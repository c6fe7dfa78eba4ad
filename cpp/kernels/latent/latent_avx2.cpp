// The latent attention kernels for AVX2.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx2.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/simd/transpose_avx2.inl.hpp"
#include "kernels/latent/latent.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const LatentKernels latent_kernels_avx2;
const LatentKernels latent_kernels_avx2 = {write_cache, attend_latent, attend_expanded, kUnpack};

}  // namespace ktc::kernels
