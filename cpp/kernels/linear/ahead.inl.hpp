// How several tokens' kernels ask for weights ahead of their use.
#pragma once

#include <cstdint>

namespace ktc::kernels {
namespace {

// Figures are of Zen 4, 2 MiB pages, two threads. Tokens leave time between the lines, in which a far request
// brings them to L2 and a near one to L1: 40 GB/s at four tokens, where the processor's own prefetching gives
// 17.
constexpr int64_t kAheadFar = 16 << 10, kAheadNear = 2 << 10;

// Where the lines of a run up to `stop` go on: behind it, or `jump` bytes on with the next run.
[[gnu::always_inline]] inline const uint8_t* onward(const uint8_t* line, const uint8_t* stop, int64_t jump) {
  return line >= stop ? line + jump : line;
}

// Asks for what lies ahead of kBytes bytes at `at`.
template <int kBytes>
[[gnu::always_inline]] inline void fetch(const uint8_t* at, const uint8_t* stop, int64_t jump) {
  const uint8_t *far = onward(at + kAheadFar, stop, jump), *near = onward(at + kAheadNear, stop, jump);
#pragma GCC unroll 16
  for (int i = 0; i < kBytes; i += 64) {
    __builtin_prefetch(far + i, 0, 2);
    __builtin_prefetch(near + i);
  }
}

}  // namespace
}  // namespace ktc::kernels
