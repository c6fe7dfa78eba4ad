// Which level has attention on rounded operands.
#include "kernels/attention/rounded.hpp"

#include "isa/isa.hpp"

namespace ktc::kernels {
namespace {

#ifdef KTC_X86
constexpr isa::Dispatch<const RoundedAttention> kRounded{
    nullptr, nullptr, nullptr, &rounded_attention_avx512vnni, &word_attention_avx512vnni};
#else
constexpr isa::Dispatch<const RoundedAttention> kRounded{};
#endif

}  // namespace

const RoundedAttention* rounded_attention(CacheType keys, CacheType values) {
  // Who keeps floats in the cache gets products of floats.
  return keys == CacheType::f32 || values == CacheType::f32 ? nullptr : kRounded.pick();
}

}  // namespace ktc::kernels
