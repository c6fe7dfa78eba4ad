// What follows products of experts on AMX tiles: gates, and weighted sums.
// clang-format off: the vectors come before what is written in terms of them.
#include "kernels/simd/avx512.inl.hpp"
#include "kernels/experts/gate.inl.hpp"
// clang-format on

namespace ktc::kernels {
namespace {

template <Gate kGate>
void gate_tile(const float* gate_sums, const float* up_sums, int tokens, const float* gate_bias,
               const float* up_bias, uint8_t* tile) {
  const auto bias = [](const float* from, int place) { return from ? vload(from + place) : vzero(); };
  const vf g0 = bias(gate_bias, 0), g1 = bias(gate_bias, 16), u0 = bias(up_bias, 0), u1 = bias(up_bias, 16);
  for (int i = 0; i < tokens; ++i, gate_sums += 16, up_sums += 16, tile += 64) {
    const vf low = gated<kGate>(vload(gate_sums) + g0, vload(up_sums) + u0);
    const vf high = gated<kGate>(vload(gate_sums + 256) + g1, vload(up_sums + 256) + u1);
    _mm512_storeu_si512(tile, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

void add_token(const float* sums, int64_t stride, int64_t panels, const int32_t* rows, float weight,
               const float* bias, float* y) {
  const vf times = vset(weight);
  for (int64_t panel = 0; panel < panels; ++panel, sums += stride) {
    float* to = y + rows[panel];
    vf low = vload(sums), high = vload(sums + 256);
    if (bias) {
      low = low + vload(bias + rows[panel]);
      high = high + vload(bias + rows[panel] + 16);
    }
    vstore(to, vfma(low, times, vload(to)));
    vstore(to + 16, vfma(high, times, vload(to + 16)));
  }
}

}  // namespace

extern const TileExpertKernels tile_expert_kernels_amx;
const TileExpertKernels tile_expert_kernels_amx = {{KTC_EACH_GATE(gate_tile)}, add_token};

}  // namespace ktc::kernels
