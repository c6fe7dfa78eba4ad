// Transposes 4 x 4 floats: the companion of generic.inl.hpp.
#pragma once

namespace ktc::kernels {
namespace {

inline void vtranspose(vf (&r)[kWidth]) {
  const vf a = r[0], b = r[1], c = r[2], d = r[3];
  for (int i = 0; i < kWidth; ++i) r[i] = vf{a[i], b[i], c[i], d[i]};
}

}  // namespace
}  // namespace ktc::kernels
