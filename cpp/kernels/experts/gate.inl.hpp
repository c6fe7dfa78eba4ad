// Gates of experts and weighted sums, for the vectors of the simd/ header included before.
#pragma once

#include "kernels/experts/tables.hpp"
#include "kernels/linear/quantize.inl.hpp"
#include "kernels/simd/math.inl.hpp"

namespace ktc::kernels {
namespace {

template <Gate kGate>
inline vf gated(vf g, vf u) {
  if constexpr (kGate == Gate::silu) return vsilu(g) * u;
  if constexpr (kGate == Gate::gelu) return vgelu_erf(g) * u;
  if constexpr (kGate == Gate::gelu_tanh) return vgelu_tanh(g) * u;
  // The value is the second operand, which vmin and vmax return where it is a NaN.
  const vf gate = vmin(vset(7.0f), g), up = vmax(vset(-7.0f), vmin(vset(7.0f), u));
  return (up + vset(1.0f)) * (gate * vsigmoid(gate * vset(1.702f)));
}

// Vector i of a block of gate values and of the up values behind it.
template <Gate kGate>
inline vf gate_vector(const float* values, int i) {
  return gated<kGate>(vload(values + i * kWidth), vload(values + kBlockColumns + i * kWidth));
}

template <Gate kGate>
void gate_blocks(const float* values, int64_t tokens, uint8_t* out, int64_t stride) {
  const auto load = [&](int64_t token, int i) {
    return gate_vector<kGate>(values + 2 * kBlockColumns * token, i);
  };
  quantize_blocks(tokens, load, out, stride);
}

template <Gate kGate>
void gate_floats(const float* values, int64_t tokens, uint8_t* out, int64_t stride) {
  for (int64_t token = 0; token < tokens; ++token) {
    float* to = reinterpret_cast<float*>(out + token * stride);
    for (int i = 0; i < kBlockColumns / kWidth; ++i)
      vstore(to + i * kWidth, gate_vector<kGate>(values + 2 * kBlockColumns * token, i));
  }
}

[[maybe_unused]] void accumulate(const float* values, int64_t count, int64_t rows, const int32_t* order,
                                 const float* weights, float* sums) {
  for (int64_t i = 0; i < count; ++i) {
    const float* from = values + i * rows;
    float* to = sums + order[i] * rows;
    const vf weight = vset(weights[i]);
    for (int64_t row = 0; row < rows; row += kWidth)
      vstore(to + row, vfma(vload(from + row), weight, vload(to + row)));
  }
}

#define KTC_EACH_GATE(kernel) \
  kernel<Gate::silu>, kernel<Gate::gelu>, kernel<Gate::gelu_tanh>, kernel<Gate::gpt_oss>
#define KTC_EXPERT_KERNELS {{KTC_EACH_GATE(gate_blocks)}, {KTC_EACH_GATE(gate_floats)}, accumulate}

}  // namespace
}  // namespace ktc::kernels
