// Transposes 16 x 16 floats: the companion of avx512.inl.hpp.
#pragma once

namespace ktc::kernels {
namespace {

inline void vtranspose(vf (&r)[kWidth]) {
  vf t[16], u[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  // u[4g + c]: in each quarter q, column 4q + c of rows 4g..4g+3.
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 16
  for (int c = 0; c < 4; ++c) {
    const vf a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88),
             b = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
    const vf d = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd),
             e = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
    r[c] = _mm512_shuffle_f32x4(a, b, 0x88);
    r[8 + c] = _mm512_shuffle_f32x4(a, b, 0xdd);
    r[4 + c] = _mm512_shuffle_f32x4(d, e, 0x88);
    r[12 + c] = _mm512_shuffle_f32x4(d, e, 0xdd);
  }
}

}  // namespace
}  // namespace ktc::kernels
