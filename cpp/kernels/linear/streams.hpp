// The product of one token with bands that lie in several places of memory, read at the same time.
//
// A core with AMX gets 105 of the 130 to 150 GB/s that 16 such cores share when each reads one place after
// the other, and 125 to 150 when each reads four: its prefetcher looks ahead within a page of 4 KiB, and the
// lines of several pages are under way together. Zen 4 reads as fast from one place that is asked for ahead.
#pragma once

#include <cstdint>

#include "formats/format.hpp"

namespace ktc::kernels {

inline constexpr int kStreams = 4;

// `count` bands of one format and of as many columns, each times one token.
struct StreamCall {
  int count;  // 1..kStreams
  int64_t columns;
  const uint8_t* band[kStreams];   // packed, 16 rows each
  const uint8_t* x[kStreams];      // the record of activations that each meets (linear/activations.hpp)
  const float* bias[kStreams];     // of its 16 rows, or null
  const uint8_t* after[kStreams];  // bands that will be read next, to be prefetched; may be those read now
  float* sums;                     // [count, 16]
};

// The same bits as IntegerKernels::direct.
struct StreamKernels {
  void (*multiply[kFormats])(const StreamCall& call);
};

#ifdef KTC_X86
extern const StreamKernels stream_kernels_avx512vnni;
#endif

// Those of the level in force, null where one place is read as fast as several.
const StreamKernels* stream_kernels();

}  // namespace ktc::kernels
