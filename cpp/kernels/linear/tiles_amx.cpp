// The linear kernels on AMX tiles.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/linear/tile_product.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const TileKernels tile_kernels_amx;
const TileKernels tile_kernels_amx = {{KTC_EACH_INTEGER_FORMAT(tile_product)}, place_token, store_token, 32};

}  // namespace ktc::kernels
