// The k-format quantisers compiled for AVX2.
#include "formats/quantize_k.hpp"
#include "formats/quantize_q4_k.hpp"
#include "formats/quantize_q6_k.hpp"

bool ktc::quantize_q4_k_avx2(const float* x, const float* weights, uint8_t* out) {
  return quantize_q4_k_block(x, weights, out);
}

bool ktc::quantize_q6_k_avx2(const float* x, const float* weights, uint8_t* out) {
  return quantize_q6_k_block(x, weights, out);
}
