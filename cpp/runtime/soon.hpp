// What the workers' caches are told of while they wait: memory that a loop will read soon.
//
// Between the products of a decoding step, whose time is that of their bytes, a program does what one or a
// few threads do: norms, a router's choice, attention over a short context. Memory is idle then. Workers that
// wait awake ask for the next product's weights meanwhile, each for the beginning of the part that it will
// read.
//
// Addresses are only ever prefetched, which no address makes a fault of: a set that is replaced while a
// worker looks at it costs a few useless lines.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace ktc::runtime {

// Memory that a loop will read from beginning to end.
struct Region {
  const uint8_t* data;
  int64_t bytes;
};

class Soon {
 public:
  static constexpr int kRegions = 4;
  // Of a worker's part, so that it fits into half of its L2.
  static constexpr int64_t kMost = 512 << 10;

  // A worker's way through the set.
  struct Place {
    uint32_t set = 0;
    int region = kRegions;
    uintptr_t at = 0, end = 0;
    int64_t left = 0;
  };

  // Up to kRegions regions instead of those before; the calling thread alone sets them.
  void set(const Region* regions, int count) {
    for (int i = 0; i < kRegions; ++i) {
      const bool there = i < count;
      data_[i].store(there ? reinterpret_cast<uintptr_t>(regions[i].data) : 0, std::memory_order_relaxed);
      bytes_[i].store(there ? regions[i].bytes : 0, std::memory_order_relaxed);
    }
    number_.fetch_add(1, std::memory_order_release);
  }

  // Asks for the next few lines of a worker's part, of `workers` that take about the same.
  void ask(Place& place, int worker, int workers) const {
    const uint32_t set = number_.load(std::memory_order_acquire);
    if (set != place.set) place = {set, -1, 0, 0, kMost};
    if (place.left <= 0) return;
    while (place.at >= place.end) {
      if (place.region >= kRegions - 1) return;
      ++place.region;
      const uintptr_t data = data_[place.region].load(std::memory_order_relaxed);
      const int64_t bytes = bytes_[place.region].load(std::memory_order_relaxed);
      place.at = (data + static_cast<uintptr_t>(bytes / workers * worker)) / 64 * 64;
      place.end = data + static_cast<uintptr_t>(bytes / workers * (worker + 1));
    }
    const uintptr_t end = std::min<uintptr_t>(place.end, place.at + kLines * 64);
    place.left -= static_cast<int64_t>(end - place.at);
    for (; place.at < end; place.at += 64) request(place.at);
  }

 private:
  static constexpr int kLines = 16;  // between two looks at the bell

  // Not a function that GCC may take for one without effect.
  [[gnu::always_inline]] static inline void request(uintptr_t line) {
    __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 2);
  }

  std::atomic<uintptr_t> data_[kRegions] = {};
  std::atomic<int64_t> bytes_[kRegions] = {};
  alignas(64) std::atomic<uint32_t> number_{0};
};

}  // namespace ktc::runtime
