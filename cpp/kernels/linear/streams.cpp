// Which levels read several places of memory at once.
#include "kernels/linear/streams.hpp"

#include "isa/isa.hpp"

namespace ktc::kernels {
namespace {

#ifdef KTC_X86
constexpr isa::Dispatch<const StreamKernels> kKernels{nullptr, nullptr, nullptr, nullptr,
                                                      &stream_kernels_avx512vnni};
#else
constexpr isa::Dispatch<const StreamKernels> kKernels{};
#endif

}  // namespace

const StreamKernels* stream_kernels() {
  return kKernels.pick();
}

}  // namespace ktc::kernels
