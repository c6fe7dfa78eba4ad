// Quantises activations to int8 in groups of 256, for AVX-512 VNNI.
#pragma once

#include "kernels/linear/activations.hpp"

namespace ktc::kernels {
namespace {

// Combines the lanes of 16 vectors: lane i of the result is those of v[i], for an `op` of two vectors. Each
// round halves the vectors and the values that are left of each.
template <class Op>
inline vf reduce_lanes(const vf (&v)[16], Op&& op) {
  vf pairs[8], quads[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    pairs[i] = op(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    quads[i] = op(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  // Each 128-bit lane of quads[i] now holds a part of v[4 i .. 4 i + 3].
  const vf low =
      op(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
  const vf high =
      op(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd));
  return op(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

// The sums of codes of the 16 halves.
inline vi half_code_sums(const int8_t* codes) {
  const vi one = _mm512_set1_epi8(1);
  vi quads[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)  // four halves each, a 128-bit lane each
    quads[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), one, _mm512_loadu_si512(codes + 64 * i));
  const vi ab =
      _mm512_add_epi32(_mm512_unpacklo_epi32(quads[0], quads[1]), _mm512_unpackhi_epi32(quads[0], quads[1]));
  const vi cd =
      _mm512_add_epi32(_mm512_unpacklo_epi32(quads[2], quads[3]), _mm512_unpackhi_epi32(quads[2], quads[3]));
  // Lane 4 l + i: half l of quads[i], which is half 4 i + l of the group.
  const vi sums = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                  sums);
}

inline void store_words(int32_t* to, vi lanes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(lanes));
}

// The group of the `blocks` blocks from x on, 1..8.
inline void quantize_group(const float* x, int blocks, ActivationGroup* group) {
  constexpr float least = 1e-36f;  // smaller ones are taken for zeros: their scale would be no normal number
  vf v[16], large[16], parts[16];
  bool finite = true;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    v[i] = i < 2 * blocks ? vload(x + 16 * i) : vzero();
    large[i] = vabs(v[i]);
    finite &= vfinite(v[i]);
    parts[i] = large[i] * vset(1.0f / kHalfCodes);
  }
  const vf highest = reduce_lanes(large, [](vf a, vf b) { return vmax(a, b); });
  const vf sums = reduce_lanes(parts, [](vf a, vf b) { return a + b; });
  // The scale that each half would have alone, and that of its block.
  const vf alone = vmax(highest * vset(1.0f / 127.0f), sums);
  const vf wanted = vmax(alone, _mm512_permute_ps(alone, 0xb1));
  const float top = vhighest(wanted), scale = top > least ? top / (1 << kGroupShift) : 0.0f;
  // The least shifts with which no code is too large.
  vi shift = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int i = 0; i < kGroupShift; ++i) {
    const __mmask16 larger = _mm512_cmp_ps_mask(wanted, vset(scale * static_cast<float>(1 << i)), _CMP_GT_OQ);
    shift = _mm512_mask_add_epi32(shift, larger, shift, _mm512_set1_epi32(1));
  }
  vf step = vset(scale) * vtofloat(_mm512_sllv_epi32(_mm512_set1_epi32(1), shift));
  // Three quarters of that, where they are enough: 3 * 2^(shift - 2).
  const vf less = step * vset(0.75f);
  const __mmask16 lower = _mm512_cmp_ps_mask(wanted, less, _CMP_LE_OQ) &
                          _mm512_cmp_epi32_mask(shift, _mm512_set1_epi32(2), _MM_CMPINT_NLT);
  step = _mm512_mask_blend_ps(lower, step, less);
  const vi more = _mm512_mask_sub_epi32(_mm512_set1_epi32(kNoMore), lower, shift, _mm512_set1_epi32(2));
  shift = _mm512_mask_sub_epi32(shift, lower, shift, _mm512_set1_epi32(1));
  const auto times_level = [&](vi codes, vi shifts, vi mores) {
    return _mm512_add_epi32(_mm512_sllv_epi32(codes, shifts), _mm512_sllv_epi32(codes, mores));
  };
  const vf inverse = scale > 0 ? vset(1.0f) / step : vzero();
  alignas(64) float inverses[16];
  vstore(inverses, inverse);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    vstore_s8(group->codes + 16 * i, vmax(vmin(v[i] * vset(inverses[i]), vset(127.0f)), vset(-127.0f)));

  group->scale = finite ? scale : __builtin_nanf("");  // what is wrong shows in the result
  const vi halves = half_code_sums(group->codes);
  store_words(group->half_shifts, shift);
  store_words(group->half_more, more);
  store_words(group->half_sums, times_level(halves, shift, more));
  // Of whole blocks, in the lower half of a vector.
  const vi even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
  const vi both =
      _mm512_permutexvar_epi32(even, _mm512_add_epi32(halves, _mm512_shuffle_epi32(halves, _MM_PERM_CDAB)));
  const vi upper = _mm512_slli_epi32(_mm512_shuffle_epi32(halves, _MM_PERM_CDAB), 16);
  const vi apart = _mm512_permutexvar_epi32(even, _mm512_add_epi32(halves, upper));
  const vi starts = _mm512_sub_epi32(_mm512_set1_epi32(1 << 15), _mm512_slli_epi32(apart, 5));
  const vi shifts = _mm512_permutexvar_epi32(even, shift), mores = _mm512_permutexvar_epi32(even, more);
  const vi sums_of_blocks = times_level(both, shifts, mores);
  const auto store = [](void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); };
  const auto low = [](vi value) { return _mm512_castsi512_si256(value); };
  const auto pairs = [](int32_t* to, vi value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm512_castsi512_si128(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(value))));
  };
  store(group->half_starts, low(starts));
  pairs(group->pair_shifts, shifts);
  pairs(group->pair_more, mores);
  pairs(group->pair_sums, sums_of_blocks);
  store(group->sums, low(_mm512_castps_si512(vtofloat(sums_of_blocks))));
  store(group->shifts, low(shifts));
}

// The groups of one token, `stride` bytes apart.
[[maybe_unused]] void quantize_groups(const float* x, int64_t columns, uint8_t* groups, int64_t stride) {
  for (int64_t column = 0; column < columns; column += kGroupColumns, groups += stride) {
    const int64_t left = (columns - column) / kBlockColumns;
    quantize_group(x + column, left < 8 ? static_cast<int>(left) : 8,
                   reinterpret_cast<ActivationGroup*>(groups));
  }
}

}  // namespace
}  // namespace ktc::kernels
