// The attention kernels on rounded operands for AVX-512 VNNI and BF16.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/simd/math.inl.hpp"
#include "kernels/simd/transpose_avx512.inl.hpp"
#include "kernels/attention/causal.inl.hpp"
#include "kernels/latent/rounded.inl.hpp"
// clang-format on

namespace ktc::kernels {

extern const RoundedAttention rounded_attention_avx512vnni;
const RoundedAttention rounded_attention_avx512vnni = {
    true, round_tile<true>, attend_rounded<true>, attend_latent_rounded<true>, attend_expanded_rounded<true>};

extern const RoundedAttention word_attention_avx512vnni;
const RoundedAttention word_attention_avx512vnni = {false, round_tile<false>, attend_rounded<false>,
                                                    attend_latent_rounded<false>,
                                                    attend_expanded_rounded<false>};

}  // namespace ktc::kernels
