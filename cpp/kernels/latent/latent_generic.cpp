// The latent attention kernels for the platform's baseline.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/generic.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/simd/transpose_generic.inl.hpp"
#include "kernels/latent/latent.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const LatentKernels latent_kernels_generic;
const LatentKernels latent_kernels_generic = {write_cache, attend_latent, attend_expanded, kUnpack};

}  // namespace ktc::kernels
