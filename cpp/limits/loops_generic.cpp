// The measured loops in plain C++: whatever the compiler makes of them for the platform's baseline.
#include "limits/loops_read.inl.hpp"
#include "limits/tables.hpp"

namespace ktc::limits {
namespace {

struct Lanes {
  static constexpr size_t kBytes = 8;
  using Sum = uint64_t;
  static Sum add(Sum sum, const uint8_t* place) {
    uint64_t word;
    __builtin_memcpy(&word, place, 8);
    return sum + word;
  }
  static uint64_t total(Sum sum) { return sum; }
};

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

const Loops loops_generic = {read<Lanes>, int8, nullptr, f32};

}  // namespace ktc::limits
