// Elementary functions on the vectors of the simd/ header included before. Relative errors are a few float32
// ulps unless said otherwise; NaN stays NaN.
#pragma once

namespace ktc::kernels {
namespace {

// e^x; 0 below -87.3, and at most e^88.3.
inline vf vexp(vf x) {
  const vf clamped = vmax(vset(-87.3f), vmin(vset(88.3f), x));
  const vf n = vround(clamped * vset(1.44269504f));
  // ln 2 in two parts, so that the remainder in [-ln2/2, ln2/2] is exact enough; then its Taylor series.
  const vf r = vfma(n, vset(2.12194440e-4f), vfma(n, vset(-0.693359375f), clamped));
  vf p = vset(1.0f / 5040);
  p = vfma(p, r, vset(1.0f / 720));
  p = vfma(p, r, vset(1.0f / 120));
  p = vfma(p, r, vset(1.0f / 24));
  p = vfma(p, r, vset(1.0f / 6));
  p = vfma(p, r, vset(0.5f));
  p = vfma(p, r, vset(1.0f));
  p = vfma(p, r, vset(1.0f));
  return vselect_less(x, vset(-87.3f), vzero(), vscale2(p, n));
}

inline vf vsigmoid(vf x) {
  return vset(1.0f) / (vset(1.0f) + vexp(vzero() - x));
}

inline vf vtanh(vf x) {
  const vf magnitude = vabs(x), square = x * x;
  // Near 0 the quotient below cancels: the Taylor series instead.
  vf series = vset(62.0f / 2835);
  series = vfma(series, square, vset(-17.0f / 315));
  series = vfma(series, square, vset(2.0f / 15));
  series = vfma(series, square, vset(-1.0f / 3));
  series = vfma(series * square, x, x);
  const vf far = vset(1.0f) - vset(2.0f) / (vexp(magnitude + magnitude) + vset(1.0f));
  return vselect_less(magnitude, vset(0.3f), series, vcopysign(far, x));
}

// The normal distribution's function, by Abramowitz and Stegun 7.1.26 for erfc: absolute error 8e-8.
inline vf vnormal(vf x) {
  const vf z = vabs(x) * vset(0.70710678f);
  const vf t = vset(1.0f) / vfma(z, vset(0.3275911f), vset(1.0f));
  vf p = vset(1.061405429f);
  p = vfma(p, t, vset(-1.453152027f));
  p = vfma(p, t, vset(1.421413741f));
  p = vfma(p, t, vset(-0.284496736f));
  p = vfma(p, t, vset(0.254829592f));
  const vf tail = vset(0.5f) * p * t * vexp(vzero() - z * z);
  return vselect_less(x, vzero(), tail, vset(1.0f) - tail);
}

inline vf vsilu(vf x) {
  return x / (vset(1.0f) + vexp(vzero() - x));
}
inline vf vgelu_erf(vf x) {
  return x * vnormal(x);
}
// x/2 (1 + tanh u) = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3).
inline vf vgelu_tanh(vf x) {
  const vf u = vset(0.79788456f) * vfma(x * x * x, vset(0.044715f), x);
  return x * vsigmoid(u + u);
}

}  // namespace
}  // namespace ktc::kernels
