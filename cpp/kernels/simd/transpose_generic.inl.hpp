// Transposes 4 x 4 floats: the companion of generic.inl.hpp.
#pragma once

namespace ktc::kernels {
namespace {

inline void vtranspose(vf (&rows)[kWidth]) {
  vf columns[kWidth] = {};
  for (int i = 0; i < kWidth; ++i) {
    for (int j = 0; j < kWidth; ++j) columns[i][j] = rows[j][i];
  }
  for (int i = 0; i < kWidth; ++i) rows[i] = columns[i];
}

}  // namespace
}  // namespace ktc::kernels
