// The Q6_K quantiser: x ~ (d * scale) * q, q in -32..31, scale in -128..127 for each 16 values, d float16.
//
// 1. Each of the 16 sub-blocks gets a real scale: many roundings of q are tried, with the largest magnitude
//    near either end of the codes, and for each the weighted least-squares scale is solved.
// 2. d follows from the largest; the neighbours of each 8-bit scale are tried.
// 3. d is solved again by least squares over the whole block, and step 2's choice repeated with it.
//
// Included by quantize_k*.cpp; everything has internal linkage.
#pragma once

#include "formats/float16.hpp"
#include "formats/quantize_k_lanes.hpp"

namespace ktc {
namespace {

constexpr int kQ6Values = 16;  // of a sub-block
constexpr int kQ6Parts = 2;    // of 8 sub-blocks each

// The values of a block, its weights, and what has been chosen so far.
struct Q6Block {
  Lanes x[kQ6Parts][kQ6Values], w[kQ6Parts][kQ6Values];
};

struct Q6Choice {
  float d;
  Lanes scales[kQ6Parts];
  float error;
};

KTC_INLINE void q6_try(const Lanes* x, const Lanes* w, Lanes inverse, Lanes& best, Lanes& gain) {
  Lanes sqq{}, sxq{};
  for (int j = 0; j < kQ6Values; ++j) {
    const Lanes q = nearest(x[j] * inverse, -32, 31), wq = w[j] * q;
    sqq += wq * q;
    sxq += wq * x[j];
  }
  const Lanes scale = ratio(sxq, sqq), other = scale * sxq;
  const Mask better = other > gain;
  best = select(better, scale, best);
  gain = select(better, other, gain);
}

// The best real scale of each of 8 sub-blocks.
KTC_INLINE Lanes q6_search(const Lanes* x, const Lanes* w) {
  constexpr float kSmallest = 1e-20f;  // far below float16's subnormals
  Lanes extreme{};                     // the value of largest magnitude, with its sign
  for (int j = 0; j < kQ6Values; ++j) extreme = select(magnitude(x[j]) > magnitude(extreme), x[j], extreme);
  const Mask flat = magnitude(extreme) < kSmallest;
  const Lanes unit = select(flat, splat(0), 1.0f / select(flat, splat(1), extreme));
  Lanes best{}, gain{};
  for (float step = -1.0f; step < 1.05f; step += 0.25f) {
    q6_try(x, w, (-32.0f + step) * unit, best, gain);
    q6_try(x, w, (31.0f + step) * unit, best, gain);
  }
  for (int round = 0; round < 2; ++round) q6_try(x, w, ratio(splat(1), best), best, gain);
  return best;
}

KTC_INLINE Lanes q6_error(const Lanes* x, const Lanes* w, Lanes scale) {
  const Lanes inverse = ratio(splat(1), scale);
  Lanes error{};
  for (int j = 0; j < kQ6Values; ++j) {
    const Lanes miss = scale * nearest(x[j] * inverse, -32, 31) - x[j];
    error += w[j] * miss * miss;
  }
  return error;
}

// Chooses the 8-bit scales for this d among the neighbours of the wanted real ones.
KTC_INLINE Q6Choice q6_choose(const Q6Block& block, float d, const Lanes* scale) {
  Q6Choice choice;
  choice.d = d;
  choice.error = 0;
  for (int part = 0; part < kQ6Parts; ++part) {
    const Lanes s0 = nearest(scale[part] * (d != 0 ? 1.0f / d : 0.0f), -128, 127);
    Lanes best = splat(3e38f);
    choice.scales[part] = s0;
    for (int ds = -1; ds <= 1; ++ds) {
      const Lanes s = larger(splat(-128), smaller(splat(127), s0 + static_cast<float>(ds)));
      const Lanes error = q6_error(block.x[part], block.w[part], d * s);
      const Mask better = error < best;
      choice.scales[part] = select(better, s, choice.scales[part]);
      best = select(better, error, best);
    }
    choice.error += sum(best);
  }
  return choice;
}

// Least squares for d with everything else as in `choice`.
KTC_INLINE float q6_refit(const Q6Block& block, const Q6Choice& choice) {
  double aa = 0, ax = 0;
  for (int part = 0; part < kQ6Parts; ++part) {
    const Lanes inverse = ratio(splat(1), choice.d * choice.scales[part]);
    Lanes saa{}, sax{};
    for (int j = 0; j < kQ6Values; ++j) {
      const Lanes a = choice.scales[part] * nearest(block.x[part][j] * inverse, -32, 31);
      saa += block.w[part][j] * a * a;
      sax += block.w[part][j] * a * block.x[part][j];
    }
    aa += sum(saa);
    ax += sum(sax);
  }
  return aa > 0 ? static_cast<float>(ax / aa) : choice.d;
}

KTC_INLINE void q6_write(const Q6Block& block, const Q6Choice& choice, uint8_t* out) {
  uint8_t q[256];
  for (int part = 0; part < kQ6Parts; ++part) {
    const Lanes inverse = ratio(splat(1), choice.d * choice.scales[part]);
    for (int j = 0; j < kQ6Values; ++j) {
      const Mask codes = __builtin_convertvector(nearest(block.x[part][j] * inverse, -32, 31), Mask) + 32;
      for (int s = 0; s < kLanes; ++s) {
        q[(part * kLanes + s) * kQ6Values + j] = static_cast<uint8_t>(codes[s]);
      }
    }
    for (int s = 0; s < kLanes; ++s) {
      out[192 + part * kLanes + s] = static_cast<uint8_t>(static_cast<int>(choice.scales[part][s]));
    }
  }
  for (int half = 0; half < 2; ++half) {  // of 128 values: 64 bytes of low nibbles, 32 of high bits
    const uint8_t* v = q + half * 128;
    for (int j = 0; j < 64; ++j) {
      out[half * 64 + j] = static_cast<uint8_t>((v[j] & 15) | (v[j + 64] & 15) << 4);
    }
    for (int j = 0; j < 32; ++j) {
      out[128 + half * 32 + j] =
          static_cast<uint8_t>(v[j] >> 4 | v[j + 32] >> 4 << 2 | v[j + 64] >> 4 << 4 | v[j + 96] >> 4 << 6);
    }
  }
  store_u16(out + 208, f32_to_f16(choice.d));
}

KTC_INLINE bool quantize_q6_k_block(const float* values, const float* weights, uint8_t* out) {
  constexpr float kLargest = 65504.0f;  // float16
  Q6Block block;
  Lanes top{};
  for (int part = 0; part < kQ6Parts; ++part) {
    to_lanes(values + part * 128, kQ6Values, block.x[part]);
    for (int j = 0; j < kQ6Values; ++j) {
      top = larger(top, magnitude(block.x[part][j]));
      block.w[part][j] = splat(1);
    }
    if (weights != nullptr) to_lanes(weights + part * 128, kQ6Values, block.w[part]);
  }
  if (highest(top) > 3e8f) return false;  // beyond 128 * 32 * 65504; also keeps the sums finite

  Lanes scale[kQ6Parts];
  float extreme = 0;  // the scale of largest magnitude, which becomes -128
  for (int part = 0; part < kQ6Parts; ++part) {
    scale[part] = q6_search(block.x[part], block.w[part]);
    for (int s = 0; s < kLanes; ++s) {
      const float a = scale[part][s] < 0 ? -scale[part][s] : scale[part][s];
      if (a > (extreme < 0 ? -extreme : extreme)) extreme = scale[part][s];
    }
  }
  float d = extreme / -128.0f;
  if (!(d >= -kLargest && d <= kLargest)) return false;
  Q6Choice best = q6_choose(block, f16_to_f32(f32_to_f16(d)), scale);
  for (int round = 0; round < 2; ++round) {
    d = q6_refit(block, best);
    if (!(d >= -kLargest && d <= kLargest)) break;
    const Lanes wanted[kQ6Parts] = {best.d * best.scales[0], best.d * best.scales[1]};
    const Q6Choice other = q6_choose(block, f16_to_f32(f32_to_f16(d)), wanted);
    if (!(other.error < best.error)) break;
    best = other;
  }
  q6_write(block, best, out);
  return true;
}

}  // namespace
}  // namespace ktc
