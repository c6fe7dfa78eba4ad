// What a loop's caller does about workers that lost their processor in the middle of a piece.
//
// A piece that was begun cannot be taken back, so the loop waits for it: a time slice of another process, a
// few milliseconds, where the loop took a tenth of one. Were the worker to join the next loop, that would
// happen again and again, and two threads be slower than one. So the caller looks at the processor time of
// whom it waits for; who gets none is sent to rest, twice as long each time it happens in a row. Its share is
// stolen meanwhile.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

#ifdef __linux__
#include <pthread.h>
#include <time.h>
#endif

namespace ktc::runtime {

using Clock = std::chrono::steady_clock;

// One worker, as seen by its caller.
struct alignas(64) Desk {
  static constexpr auto kShortestRest = std::chrono::milliseconds(8);
  static constexpr auto kLongestRest = std::chrono::milliseconds(128);

  std::atomic<bool> busy{false};      // in a loop
  std::atomic<bool> sent_off{false};  // to rest after it
  std::atomic<bool> open{false};      // `time` is set
#ifdef __linux__
  clockid_t time = 0;
#endif

  // Called by the worker itself.
  void sit_down() {
#ifdef __linux__
    open.store(pthread_getcpuclockid(pthread_self(), &time) == 0, std::memory_order_release);
#endif
  }

  // How long to rest now.
  Clock::duration next_rest() {
    sent_off.store(false, std::memory_order_relaxed);
    const Clock::time_point now = Clock::now();
    const bool again = now - rested_ < 8 * length_;
    length_ = again ? 2 * length_ : kShortestRest;
    if (length_ > kLongestRest) length_ = kLongestRest;
    rested_ = now + length_;
    return length_;
  }

  // Nanoseconds on a processor so far; -1 if nobody knows.
  int64_t processor_time() const {
#ifdef __linux__
    timespec value;
    if (open.load(std::memory_order_acquire) && clock_gettime(time, &value) == 0)
      return int64_t{value.tv_sec} * 1'000'000'000 + value.tv_nsec;
#endif
    return -1;
  }

 private:
  Clock::time_point rested_{};
  Clock::duration length_{};
};

// While a loop waits for its last pieces: looks now and then whether those who do them run.
class Overseer {
 public:
  explicit Overseer(std::vector<Desk>& desks) : desks_(desks), seen_(desks.size(), -1) { look(); }

  // Whether somebody was sent to rest now.
  bool look() {
    const Clock::time_point now = Clock::now();
    const auto passed = std::chrono::nanoseconds(now - last_).count();
    bool sent = false;
    if (passed < kBetween) return false;
    for (size_t i = 0; i < desks_.size(); ++i) {
      Desk& desk = desks_[i];
      const int64_t before = seen_[i];
      seen_[i] = desk.busy.load(std::memory_order_relaxed) ? desk.processor_time() : -1;
      if (before < 0 || seen_[i] < 0 || seen_[i] - before > passed / 4) continue;
      desk.sent_off.store(true, std::memory_order_relaxed);
      sent = true;
    }
    last_ = now;
    return sent;
  }

 private:
  static constexpr int64_t kBetween = 150'000;  // ns

  std::vector<Desk>& desks_;
  std::vector<int64_t> seen_;
  Clock::time_point last_{};
};

}  // namespace ktc::runtime
