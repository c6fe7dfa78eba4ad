// Quantises activations to int8 in blocks of 32, for the vectors of the simd/ header included before.
#pragma once

#include "kernels/linear/activations.hpp"
#if defined(__AVX512BW__)
#include "kernels/linear/quantize_eight.inl.hpp"
#endif

namespace ktc::kernels {
namespace {

inline void quantize_block(const vf* v, ActivationBlock* block) {
  vf largest = vzero();
  bool finite = true;
  for (int i = 0; i < kBlockColumns / kWidth; ++i) {
    largest = vmax(vabs(v[i]), largest);
    finite &= vfinite(v[i]);
  }
  const float highest = vhighest(largest);
  const vf inverse = vset(highest > 0 ? 127.0f / highest : 0.0f);
  for (int i = 0; i < kBlockColumns / kWidth; ++i) {
    const vf code = vmax(vmin(v[i] * inverse, vset(127.0f)), vset(-127.0f));
    vstore_s8(block->codes + i * kWidth, code);  // rounds to nearest
  }
  const int32_t sums[2] = {vsum_s8(block->codes), vsum_s8(block->codes + 16)};
  // A block with an infinity or NaN gets a NaN scale: what is wrong shows in the result.
  const float scale = finite ? highest / 127.0f : __builtin_nanf("");
  const int32_t both = sums[0] + sums[1];
  block->scale = scale;
  block->sum = scale * static_cast<float>(both);
  block->half_sums[0] = scale * static_cast<float>(sums[0]);
  block->half_sums[1] = scale * static_cast<float>(sums[1]);
  block->minus = -both;
  block->half_minus[0] = -sums[0];
  block->half_minus[1] = -sums[1];
  block->unused = 0;
}

#if defined(__AVX512BW__)
// Fewer blocks are done one by one.
constexpr int kWorthABatch = 4;

// Blocks [first, first + some) of those below; kBatch of them stay in registers.
template <bool kAll, typename Load>
inline void quantize_batch(int64_t first, int some, const Load& load, uint8_t* out, int64_t stride) {
  vf v[2 * kBatch];
#pragma GCC unroll 8
  for (int i = 0; i < kBatch; ++i) {
    if (kAll || i < some) {
      v[2 * i] = load(first + i, 0);
      v[2 * i + 1] = load(first + i, 1);
    } else {
      v[2 * i] = v[2 * i + 1] = vzero();
    }
  }
  if (quantize_eight(v, kAll ? kBatch : some, out + first * stride, stride)) return;
  for (int64_t i = first; i < first + some; ++i) {
    const vf one[2] = {load(i, 0), load(i, 1)};
    quantize_block(one, reinterpret_cast<ActivationBlock*>(out + i * stride));
  }
}
#endif

// Blocks i in [0, count), whose vectors are load(i, 0), load(i, 1), ..., to out + i * stride.
template <typename Load>
inline void quantize_blocks(int64_t count, const Load& load, uint8_t* out, int64_t stride) {
  int64_t first = 0;
#if defined(__AVX512BW__)
  for (; first + kBatch <= count; first += kBatch) quantize_batch<true>(first, kBatch, load, out, stride);
  if (first + kWorthABatch <= count)
    return quantize_batch<false>(first, static_cast<int>(count - first), load, out, stride);
#endif
  for (; first < count; ++first) {
    vf v[kBlockColumns / kWidth];
    for (int i = 0; i < kBlockColumns / kWidth; ++i) v[i] = load(first, i);
    quantize_block(v, reinterpret_cast<ActivationBlock*>(out + first * stride));
  }
}

[[maybe_unused]] void quantize(const float* x, int64_t columns, uint8_t* record) {
  const auto load = [&](int64_t block, int i) { return vload(x + block * kBlockColumns + i * kWidth); };
  quantize_blocks(columns / kBlockColumns, load, record, sizeof(ActivationBlock));
}

}  // namespace
}  // namespace ktc::kernels
