// The Q4_K quantiser: x ~ (d * scale) * q - (dmin * minimum), q in 0..15, scale and minimum in 0..63, d and
// dmin float16.
//
// 1. Each of the 8 sub-blocks of 32 gets a real scale and minimum: many roundings of q are tried, from
//    slightly different ranges, and for each the weighted least-squares line through (q, x) is solved; the
//    best is refined by rounding and solving in turn.
// 2. d and dmin follow from the largest; the neighbours of each 6-bit scale and minimum are tried.
// 3. d and dmin are solved again by least squares over the whole block, and step 2's choice repeated with
//    them.
//
// Included by quantize_k*.cpp; everything has internal linkage.
#pragma once

#include "formats/float16.hpp"
#include "formats/quantize_k_lanes.hpp"

namespace ktc {
namespace {

constexpr int kQ4Values = 32;  // of a sub-block

// A line x ~ scale * q + offset per lane (offset <= 0), and by how much it lowers the squared error.
struct Q4Fit {
  Lanes scale, offset, gain;
};

// The weighted least-squares line for the codes nearest((x - offset) * inverse).
KTC_INLINE Q4Fit q4_solve(const Lanes* x, const Lanes* w, Lanes offset, Lanes inverse) {
  Lanes sw{}, sq{}, sqq{}, sx{}, sxq{};
  for (int j = 0; j < kQ4Values; ++j) {
    const Lanes q = nearest((x[j] - offset) * inverse, 0, 15);
    const Lanes wq = w[j] * q, wx = w[j] * x[j];
    sw += w[j];
    sq += wq;
    sqq += wq * q;
    sx += wx;
    sxq += wx * q;
  }
  const Lanes determinant = sw * sqq - sq * sq;
  const Mask equal = determinant <= 1e-5f * sw * sqq;  // all codes are the same: there is no line
  Q4Fit fit;
  fit.scale = ratio(sw * sxq - sx * sq, determinant);
  fit.offset = ratio(sqq * sx - sq * sxq, determinant);
  // The format cannot add: a line above zero at q = 0 is replaced by the best one through zero.
  const Mask above = equal | (fit.offset > 0.0f);
  fit.scale = larger(select(above, ratio(sxq, sqq), fit.scale), splat(0));
  fit.offset = select(above, splat(0), fit.offset);
  const Mask constant = equal & (sx < 0.0f);  // a negative constant is all minimum
  fit.scale = select(constant, splat(0), fit.scale);
  fit.offset = select(constant, ratio(sx, sw), fit.offset);
  fit.gain = fit.scale * (2.0f * sxq - fit.scale * sqq) +
             fit.offset * (2.0f * sx - fit.offset * sw - 2.0f * fit.scale * sq);
  return fit;
}

KTC_INLINE void q4_keep_better(Q4Fit& best, const Q4Fit& other) {
  const Mask better = other.gain > best.gain;
  best.scale = select(better, other.scale, best.scale);
  best.offset = select(better, other.offset, best.offset);
  best.gain = select(better, other.gain, best.gain);
}

KTC_INLINE Q4Fit q4_search(const Lanes* x, const Lanes* w) {
  constexpr float kSmallestRange = 1e-20f;  // far below float16's subnormals
  Lanes low = splat(0), high = x[0];
  for (int j = 0; j < kQ4Values; ++j) {
    low = smaller(low, x[j]);
    high = larger(high, x[j]);
  }
  const Lanes range = high - low;
  const Mask flat = range < kSmallestRange;
  Q4Fit best{select(flat, splat(0), range / 15.0f), low, splat(-3e38f)};
  for (float levels = 13.4f; levels < 16.55f;
       levels += 0.3f) {  // above 15 the ends clip, below some codes stay unused
    const Lanes inverse = select(flat, splat(0), levels / select(flat, splat(1), range));
    q4_keep_better(best, q4_solve(x, w, low, inverse));
  }
  for (int round = 0; round < 4; ++round) {
    q4_keep_better(best, q4_solve(x, w, best.offset, ratio(splat(1), best.scale)));
  }
  return best;
}

// Weighted squared error of each lane with these final factors.
KTC_INLINE Lanes q4_error(const Lanes* x, const Lanes* w, Lanes scale, Lanes minimum) {
  const Lanes inverse = ratio(splat(1), scale);
  Lanes error{};
  for (int j = 0; j < kQ4Values; ++j) {
    const Lanes q = nearest((x[j] + minimum) * inverse, 0, 15);
    const Lanes miss = scale * q - minimum - x[j];
    error += w[j] * miss * miss;
  }
  return error;
}

// A whole block: the two factors as stored, 6-bit scales and minima, and the squared error they give.
struct Q4Block {
  float d, dmin;
  Lanes scales, minima;
  float error;
};

// Chooses the 6-bit numbers for these d and dmin among the neighbours of the wanted real ones.
KTC_INLINE Q4Block q4_choose(const Lanes* x, const Lanes* w, float d, float dmin, Lanes scale,
                             Lanes minimum) {
  const Lanes s0 = nearest(scale * (d > 0 ? 1.0f / d : 0.0f), 0, 63);
  const Lanes m0 = nearest(minimum * (dmin > 0 ? 1.0f / dmin : 0.0f), 0, 63);
  Q4Block block{d, dmin, s0, m0, 0};
  Lanes best = splat(3e38f);
  for (int ds = -1; ds <= 1; ++ds) {
    for (int dm = -1; dm <= 1; ++dm) {
      if (ds * dm < 0) continue;  // a steeper line wants a lower start: these two hardly ever win
      const Lanes s = larger(splat(0), smaller(splat(63), s0 + static_cast<float>(ds)));
      const Lanes m = larger(splat(0), smaller(splat(63), m0 + static_cast<float>(dm)));
      const Lanes error = q4_error(x, w, d * s, dmin * m);
      const Mask better = error < best;
      block.scales = select(better, s, block.scales);
      block.minima = select(better, m, block.minima);
      best = select(better, error, best);
    }
  }
  block.error = sum(best);
  return block;
}

// Least squares for d and dmin with everything else as in `block`; keeps a factor that has no equation.
KTC_INLINE void q4_refit(const Lanes* x, const Lanes* w, const Q4Block& block, float& d, float& dmin) {
  const Lanes scale = block.d * block.scales, minimum = block.dmin * block.minima;
  const Lanes inverse = ratio(splat(1), scale);
  Lanes aa{}, ab{}, bb{}, ax{}, bx{};  // x ~ d * a - dmin * b
  for (int j = 0; j < kQ4Values; ++j) {
    const Lanes a = block.scales * nearest((x[j] + minimum) * inverse, 0, 15), b = block.minima;
    aa += w[j] * a * a;
    ab += w[j] * a * b;
    bb += w[j] * b * b;
    ax += w[j] * a * x[j];
    bx += w[j] * b * x[j];
  }
  const double AA = sum(aa), AB = sum(ab), BB = sum(bb), AX = sum(ax), BX = sum(bx);
  const double determinant = AA * BB - AB * AB;
  if (determinant > 1e-9 * AA * BB) {
    d = static_cast<float>((AX * BB - BX * AB) / determinant);
    dmin = static_cast<float>((AX * AB - BX * AA) / determinant);
  } else if (AA > 0) {
    d = static_cast<float>((AX + static_cast<double>(dmin) * AB) / AA);
  }
}

KTC_INLINE void q4_write(const Lanes* x, const Q4Block& block, uint8_t* out) {
  const Lanes minimum = block.dmin * block.minima;
  const Lanes inverse = ratio(splat(1), block.d * block.scales);
  store_u16(out, f32_to_f16(block.d));
  store_u16(out + 2, f32_to_f16(block.dmin));
  for (int i = 0; i < 4; ++i) {
    const int s_low = static_cast<int>(block.scales[i]), s_high = static_cast<int>(block.scales[i + 4]);
    const int m_low = static_cast<int>(block.minima[i]), m_high = static_cast<int>(block.minima[i + 4]);
    out[4 + i] = static_cast<uint8_t>(s_low | s_high >> 4 << 6);
    out[8 + i] = static_cast<uint8_t>(m_low | m_high >> 4 << 6);
    out[12 + i] = static_cast<uint8_t>((s_high & 15) | (m_high & 15) << 4);
  }
  for (int j = 0; j < kQ4Values; ++j) {
    const Mask q = __builtin_convertvector(nearest((x[j] + minimum) * inverse, 0, 15), Mask);
    for (int pair = 0; pair < 4; ++pair) {
      out[16 + pair * 32 + j] = static_cast<uint8_t>(q[2 * pair] | q[2 * pair + 1] << 4);
    }
  }
}

KTC_INLINE bool quantize_q4_k_block(const float* values, const float* weights, uint8_t* out) {
  constexpr float kLargest = 65504.0f;  // float16
  Lanes x[kQ4Values], w[kQ4Values];
  to_lanes(values, kQ4Values, x);
  Lanes top{};
  for (int j = 0; j < kQ4Values; ++j) {
    top = larger(top, magnitude(x[j]));
    w[j] = splat(1);
  }
  if (highest(top) > 1e8f) return false;  // beyond 63 * 15 * 65504; also keeps the sums finite
  if (weights != nullptr) to_lanes(weights, kQ4Values, w);

  const Q4Fit fit = q4_search(x, w);
  const Lanes minimum = -fit.offset;
  float d = highest(fit.scale) / 63.0f, dmin = highest(minimum) / 63.0f;
  if (d > kLargest || dmin > kLargest) return false;
  Q4Block best = q4_choose(x, w, f16_to_f32(f32_to_f16(d)), f16_to_f32(f32_to_f16(dmin)), fit.scale, minimum);
  d = best.d;
  dmin = best.dmin;
  q4_refit(x, w, best, d, dmin);
  if (d >= 0 && d <= kLargest && dmin >= 0 && dmin <= kLargest) {
    const Q4Block other = q4_choose(x, w, f16_to_f32(f32_to_f16(d)), f16_to_f32(f32_to_f16(dmin)),
                                    best.d * best.scales, best.dmin * best.minima);
    if (other.error < best.error) best = other;
  }
  q4_write(x, best, out);
  return true;
}

}  // namespace
}  // namespace ktc
