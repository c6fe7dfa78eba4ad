// Quantisers that need no search, the checks of all quantisers, and their split among the pool's threads.
#include "formats/quantize.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "formats/float16.hpp"
#include "formats/float8.hpp"
#include "formats/quantize_k.hpp"
#include "isa/isa.hpp"
#include "runtime/pool.hpp"

namespace ktc {
namespace {

constexpr float kOverflowsF16 = 65520.0f;  // rounds to infinity

float absolute(float x) {
  return bits_to_float(float_to_bits(x) & 0x7fffffffu);
}
bool finite(float x) {
  return absolute(x) < std::numeric_limits<float>::infinity();
}

// Q4_0 and Q8_0 agree with the gguf package bit for bit. A block whose inverse scale overflows is stored as
// zeros; its values are below 1e-37.
bool quantize_q4_0(const float* x, uint8_t* out) {
  float extreme = x[0];  // the first value of largest magnitude, with its sign: it becomes code 0, -8
  for (int j = 1; j < 32; ++j) extreme = absolute(x[j]) > absolute(extreme) ? x[j] : extreme;
  const float d = extreme / -8.0f;
  if (absolute(d) >= kOverflowsF16) return false;
  const float inverse = d == 0 || !finite(1.0f / d) ? 0.0f : 1.0f / d;
  store_u16(out, f32_to_f16(d));
  for (int j = 0; j < 16; ++j) {
    const int low = static_cast<int>(x[j] * inverse + 8.5f),
              high = static_cast<int>(x[j + 16] * inverse + 8.5f);
    out[2 + j] = static_cast<uint8_t>(std::min(low, 15) | std::min(high, 15) << 4);
  }
  return true;
}

bool quantize_q8_0(const float* x, uint8_t* out) {
  float top = 0;
  for (int j = 0; j < 32; ++j) top = absolute(x[j]) > top ? absolute(x[j]) : top;
  const float d = top / 127.0f;
  if (d >= kOverflowsF16) return false;
  const float inverse = d == 0 || !finite(1.0f / d) ? 0.0f : 1.0f / d;
  store_u16(out, f32_to_f16(d));
  for (int j = 0; j < 32; ++j) {
    const float scaled = x[j] * inverse, size = absolute(scaled);
    const int whole = static_cast<int>(size);  // halves round away from zero
    const int rounded = whole + static_cast<int>(2.0f * (size - static_cast<float>(whole)));
    out[2 + j] = static_cast<uint8_t>(scaled < 0 ? -rounded : rounded);
  }
  return true;
}

// The scale makes the largest value 448, as DeepSeek-V3's inference code does. Values too small for a scale
// become 0.
bool quantize_fp8(const float* x, uint8_t* out) {
  float top = 0;
  for (int j = 0; j < 128; ++j) top = absolute(x[j]) > top ? absolute(x[j]) : top;
  const float d = top / kLargestE4m3;
  std::memcpy(out, &d, 4);
  for (int j = 0; j < 128; ++j) out[4 + j] = d == 0 ? uint8_t{0} : f32_to_e4m3(x[j] / d);
  return true;
}

constexpr isa::Dispatch<QuantizeBlock> kQ4K = {
    .generic = quantize_q4_k_generic,
#if KTC_X86
    .avx2 = quantize_q4_k_avx2,
#endif
};
constexpr isa::Dispatch<QuantizeBlock> kQ6K = {
    .generic = quantize_q6_k_generic,
#if KTC_X86
    .avx2 = quantize_q6_k_avx2,
#endif
};

// Collects the first fault of all threads.
class FirstFault {
 public:
  void note(int64_t index) {
    int64_t seen = index_.load();
    while (index < seen && !index_.compare_exchange_weak(seen, index)) {
    }
  }
  bool none() const { return index_.load() == kNone; }
  int64_t index() const { return index_.load(); }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> index_{kNone};
};

QuantizeResult quantize_f16(const float* in, uint8_t* out, int64_t count) {
  FirstFault fault;
  runtime::Pool::instance().parallel_for(count, 1 << 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) store_u16(out + i * 2, f32_to_f16(in[i]));
    for (int64_t i = begin; i < end; ++i) {
      if (absolute(in[i]) >= kOverflowsF16 && finite(in[i])) return fault.note(i);
    }
  });
  return fault.none() ? QuantizeResult{} : QuantizeResult{Fault::out_of_range, fault.index()};
}

// All block formats: `block` turns `elements` finite values into a block.
template <typename Block>
QuantizeResult quantize_blocks(const FormatInfo& f, const float* in, uint8_t* out, int64_t blocks,
                               const Block& block) {
  FirstFault not_finite, out_of_range;
  const auto work = [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) {
      const float* x = in + b * f.elements;
      for (int j = 0; j < f.elements; ++j) {
        if (!finite(x[j])) return not_finite.note(b * f.elements + j);
      }
      if (!block(b, x, out + b * f.bytes)) return out_of_range.note(b * f.elements);
    }
  };
  runtime::Pool::instance().parallel_for(blocks, (1 << 13) / f.elements, work);
  if (!not_finite.none()) return {Fault::not_finite, not_finite.index()};
  if (!out_of_range.none()) return {Fault::out_of_range, out_of_range.index()};
  return {};
}

}  // namespace

bool can_quantize(Format format) {
  switch (format) {
    case Format::f32:
    case Format::f16:
    case Format::bf16:
    case Format::q4_0:
    case Format::q8_0:
    case Format::q4_k:
    case Format::q6_k:
    case Format::fp8:
      return true;
    default:
      return false;
  }
}

QuantizeResult quantize(Format format, const float* in, uint8_t* out, int64_t rows, int64_t columns,
                        const float* importance) {
  const FormatInfo& f = info(format);
  const int64_t row_blocks = columns / f.elements, blocks = rows * row_blocks;
  const auto weights = [&](int64_t b) {
    return importance == nullptr ? nullptr : importance + b % row_blocks * f.elements;
  };
  switch (format) {
    case Format::f32:
      std::memcpy(out, in, static_cast<size_t>(rows * columns) * 4);
      return {};
    case Format::f16:
      return quantize_f16(in, out, rows * columns);
    case Format::bf16:
      runtime::Pool::instance().parallel_for(rows * columns, 1 << 16, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) store_u16(out + i * 2, f32_to_bf16(in[i]));
      });
      return {};
    case Format::q4_0:
      return quantize_blocks(f, in, out, blocks,
                             [](int64_t, const float* x, uint8_t* o) { return quantize_q4_0(x, o); });
    case Format::q8_0:
      return quantize_blocks(f, in, out, blocks,
                             [](int64_t, const float* x, uint8_t* o) { return quantize_q8_0(x, o); });
    case Format::fp8:
      return quantize_blocks(f, in, out, blocks,
                             [](int64_t, const float* x, uint8_t* o) { return quantize_fp8(x, o); });
    case Format::q4_k:
    case Format::q6_k: {
      const auto search = (format == Format::q4_k ? kQ4K : kQ6K).pick();
      return quantize_blocks(f, in, out, blocks,
                             [&](int64_t b, const float* x, uint8_t* o) { return search(x, weights(b), o); });
    }
    default:
      return {Fault::out_of_range, 0};  // callers ask can_quantize() first
  }
}

}  // namespace ktc
