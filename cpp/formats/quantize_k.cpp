// The k-format quantisers compiled for the platform's baseline.
#include "formats/quantize_k.hpp"

#include "formats/quantize_q4_k.hpp"
#include "formats/quantize_q6_k.hpp"

bool ktc::quantize_q4_k_generic(const float* x, const float* weights, uint8_t* out) {
  return quantize_q4_k_block(x, weights, out);
}

bool ktc::quantize_q6_k_generic(const float* x, const float* weights, uint8_t* out) {
  return quantize_q6_k_block(x, weights, out);
}
