// Waiting for another thread: awake, or asleep on a word in memory.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ktc::runtime {

// A moment awake.
inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Returns when the word is not `seen`, or perhaps before; with `most`, after that time at the latest.
inline void sleep_on(std::atomic<uint32_t>& word, uint32_t seen, std::chrono::nanoseconds most = {}) {
#ifdef __linux__
  const auto nanoseconds = most.count();
  const timespec time{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen,
          nanoseconds > 0 ? &time : nullptr, nullptr, 0);
#else
  if (most.count() > 0)
    std::this_thread::sleep_for(most);
  else
    word.wait(seen);
#endif
}

// Wakes whoever sleeps on it.
inline void wake_all(std::atomic<uint32_t>& word) {
#ifdef __linux__
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
#else
  word.notify_all();
#endif
}

}  // namespace ktc::runtime
