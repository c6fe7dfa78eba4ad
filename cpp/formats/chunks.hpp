// Splits a loop over blocks among threads, for work that happens once at load time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace ktc {

// Calls work(begin, end) on disjoint ranges that cover [0, count), one a thread, each at least `smallest`
// long. `work` must not throw.
template <typename Work>
void in_chunks(int64_t count, int64_t smallest, const Work& work) {
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  const int64_t threads = std::clamp<int64_t>(count / std::max<int64_t>(smallest, 1), 1, cores);
  const auto bound = [&](int64_t i) { return count / threads * i + std::min(i, count % threads); };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(threads - 1));
  int64_t done = 0;  // ranges that got a thread
  try {
    for (; done < threads - 1; ++done) helpers.emplace_back(work, bound(done), bound(done + 1));
  } catch (const std::system_error&) {
    // The system grants no more threads: this one does the rest.
  }
  work(bound(done), count);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace ktc
