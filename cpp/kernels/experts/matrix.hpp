// One of the two matrices of all experts, as packed weights lie in memory.
#pragma once

#include <cstdint>

#include "kernels/experts/experts.hpp"
#include "kernels/linear/activations.hpp"
#include "kernels/packed/format.hpp"

namespace ktc::kernels {

struct Matrix {
  Format format;
  int64_t rows, columns, band_stride, expert_stride;
  const uint8_t* data;
  const float* bias;

  Matrix(Format f, int64_t r, int64_t c, const uint8_t* d, const float* b)
      : format(f),
        rows(r),
        columns(c),
        band_stride(band_bytes(f, c)),
        expert_stride(r / kBandRows * band_stride),
        data(d),
        bias(b) {}

  bool integers() const { return !is_float(format); }
  // The row of the weight whose group of 32 rows (a block of the next matrix's columns) is packed from
  // `place` on; see Experts.
  int64_t row_at(int64_t place) const {
    if (rows % (2 * kBlockColumns)) return place;
    const int64_t group = place / kBlockColumns;
    return group % 2 * (rows / 2) + group / 2 * kBlockColumns;
  }
  const uint8_t* band(int64_t expert, int64_t place) const {
    return data + expert * expert_stride + place / kBandRows * band_stride;
  }
};

inline Matrix gate_up_of(const Experts& e) {
  return {e.gate_up_format, 2 * e.inner, e.hidden, e.gate_up, e.gate_up_bias};
}
inline Matrix down_of(const Experts& e) {
  return {e.down_format, e.hidden, e.inner, e.down, e.down_bias};
}

}  // namespace ktc::kernels
