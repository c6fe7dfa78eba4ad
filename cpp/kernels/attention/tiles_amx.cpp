// The attention kernels on AMX tiles.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/simd/transpose_avx512.inl.hpp"
#include "kernels/attention/tiles.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const TiledAttention tiled_attention_amx;
const TiledAttention tiled_attention_amx = {place_keys, place_values, attend_tiled};

}  // namespace ktc::kernels
