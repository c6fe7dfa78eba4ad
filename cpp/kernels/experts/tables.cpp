// The table of gates and weighted sums of the level in force.
#include "kernels/experts/tables.hpp"

#include "isa/isa.hpp"

namespace ktc::kernels {
namespace {

#ifdef KTC_X86
constexpr isa::Dispatch<const ExpertKernels> kKernels{&expert_kernels_generic, &expert_kernels_avx2,
                                                      &expert_kernels_avx512, nullptr};
#else
constexpr isa::Dispatch<const ExpertKernels> kKernels{&expert_kernels_generic};
#endif
#ifdef KTC_AMX
constexpr isa::Dispatch<const TileExpertKernels> kTiles{nullptr, nullptr, nullptr, nullptr,
                                                        &tile_expert_kernels_amx};
#else
constexpr isa::Dispatch<const TileExpertKernels> kTiles{};
#endif

}  // namespace

const ExpertKernels& expert_kernels() {
  return *kKernels.pick();
}

const TileExpertKernels* tile_expert_kernels() {
  return kTiles.pick();
}

}  // namespace ktc::kernels
