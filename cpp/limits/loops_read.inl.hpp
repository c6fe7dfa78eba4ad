// Reading of memory at several places at a time; for sources with a suffix too. `Lanes` is the vectors to
// read with: kBytes that a step reads of a stream, Sum, add(sum, place) and total(sum).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ktc::limits {
namespace {

template <typename Lanes, int kStreams>
uint64_t read_from(const uint8_t* data, size_t bytes) {
  typename Lanes::Sum sums[kStreams] = {};
  const size_t share = bytes / kStreams;
  for (size_t at = 0; at + Lanes::kBytes <= share; at += Lanes::kBytes) {
#pragma GCC unroll 16
    for (int s = 0; s < kStreams; ++s)
      sums[s] = Lanes::add(sums[s], data + static_cast<size_t>(s) * share + at);
  }
  uint64_t total = 0;
  for (int s = 0; s < kStreams; ++s) total += Lanes::total(sums[s]);
  return total;
}

template <typename Lanes>
uint64_t read(const uint8_t* data, size_t bytes, int streams) {
  switch (streams) {
    case 1:
      return read_from<Lanes, 1>(data, bytes);
    case 2:
      return read_from<Lanes, 2>(data, bytes);
    case 4:
      return read_from<Lanes, 4>(data, bytes);
    case 8:
      return read_from<Lanes, 8>(data, bytes);
    default:
      return read_from<Lanes, 16>(data, bytes);
  }
}

}  // namespace
}  // namespace ktc::limits
