// The measured loops in plain C++: whatever the compiler makes of them for the platform's baseline.
#include "limits/tables.hpp"

namespace ktc::limits {
namespace {

template <int kStreams>
uint64_t read_from(const uint8_t* data, size_t bytes) {
  uint64_t sums[kStreams] = {};
  const size_t share = bytes / kStreams;
  for (size_t at = 0; at + 8 <= share; at += 8) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      uint64_t word;
      __builtin_memcpy(&word, data + static_cast<size_t>(s) * share + at, 8);
      sums[s] += word;
    }
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

uint64_t read(const uint8_t* data, size_t bytes, int streams) {
  switch (streams) {
    case 1:
      return read_from<1>(data, bytes);
    case 2:
      return read_from<2>(data, bytes);
    case 4:
      return read_from<4>(data, bytes);
    default:
      return read_from<8>(data, bytes);
  }
}

// Keeps a value alive and unknown to the compiler.
template <typename T>
void opaque(T& value) {
  asm volatile("" : "+m"(value));
}

double int8(int64_t rounds) {
  int32_t sums[64] = {};
  int8_t x[64];
  int8_t y[64];
  for (int i = 0; i < 64; ++i) {
    x[i] = static_cast<int8_t>(i);
    y[i] = static_cast<int8_t>(3 - i);
  }
  for (int64_t round = 0; round < rounds; ++round) {
    opaque(x);
    for (int i = 0; i < 64; ++i) sums[i] += int32_t{x[i]} * y[i];
  }
  opaque(sums);
  return static_cast<double>(rounds) * 64 * 2;
}

double f32(int64_t rounds) {
  float sums[64] = {};
  float x[64];
  for (int i = 0; i < 64; ++i) x[i] = 1e-6F * static_cast<float>(i);
  for (int64_t round = 0; round < rounds; ++round) {
    opaque(x);
    for (int i = 0; i < 64; ++i) sums[i] += x[i] * 0.5F;
  }
  opaque(sums);
  return static_cast<double>(rounds) * 64 * 2;
}

}  // namespace

const Loops loops_generic = {read, int8, nullptr, f32};

}  // namespace ktc::limits
