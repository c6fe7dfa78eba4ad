// Vectors of the rows of a result, of which the last band may have fewer than 16.
#pragma once

namespace ktc::kernels {
namespace {

inline vf load_rows(const float* p, int64_t row, int64_t rows) {
  if (row + kWidth <= rows) return vload(p + row);
  return row < rows ? vload_n(p + row, static_cast<int>(rows - row)) : vzero();
}
inline void store_rows(float* p, int64_t row, int64_t rows, vf value) {
  if (row + kWidth <= rows) {
    vstore(p + row, value);
  } else if (row < rows) {
    vstore_n(p + row, value, static_cast<int>(rows - row));
  }
}

}  // namespace
}  // namespace ktc::kernels
