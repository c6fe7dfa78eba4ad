// Sums of the lanes of several vectors at once, for the vectors of the simd/ header included before.
#pragma once

namespace ktc::kernels {
namespace {

#if defined(__AVX512F__)
constexpr int kSums = 8;
inline void vsums(const vf* v, float* out) {
  vf quads[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const vf* q = v + 4 * i;
    const vf ab = _mm512_add_ps(_mm512_unpacklo_ps(q[0], q[1]), _mm512_unpackhi_ps(q[0], q[1]));
    const vf cd = _mm512_add_ps(_mm512_unpacklo_ps(q[2], q[3]), _mm512_unpackhi_ps(q[2], q[3]));
    const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    quads[i] =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  // Quarters of the first four, then of the others; both hold four partial sums.
  const vf halves = _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88),
                                  _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
  const vf sums = _mm512_add_ps(halves, _mm512_shuffle_f32x4(halves, halves, 0xb1));
  _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_shuffle_f32x4(sums, sums, 0x08)));
}
#elif defined(__AVX2__)
constexpr int kSums = 4;
inline void vsums(const vf* v, float* out) {
  const vf sums = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
}
#else
constexpr int kSums = 4;
inline void vsums(const vf* v, float* out) {
  vf r[4] = {v[0], v[1], v[2], v[3]};
  vtranspose(r);
  vstore(out, (r[0] + r[1]) + (r[2] + r[3]));
}
#endif

}  // namespace
}  // namespace ktc::kernels
