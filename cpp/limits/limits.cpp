// Measures with the pool's own threads, cut as kernels cut their work.
#include "limits/limits.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>

#include "isa/isa.hpp"
#include "limits/tables.hpp"
#include "runtime/pool.hpp"

namespace ktc::limits {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

const Loops& loops() {
#if defined(KTC_AMX)
  const isa::Dispatch<const Loops> dispatch{&loops_generic, &loops_avx2, &loops_avx512, &loops_avx512vnni,
                                            &loops_amx};
#elif defined(KTC_X86)
  const isa::Dispatch<const Loops> dispatch{&loops_generic, &loops_avx2, &loops_avx512, &loops_avx512vnni};
#else
  const isa::Dispatch<const Loops> dispatch{&loops_generic};
#endif
  return *dispatch.pick();
}

constexpr int64_t kPiece = int64_t{1} << 20;
constexpr int64_t kRounds = 20000;

}  // namespace

double read_bandwidth(const uint8_t* data, int64_t bytes, int streams, double seconds) {
  if (bytes < kPiece) throw std::invalid_argument("a region of at least 1 MiB is needed");
  if (streams < 1 || streams > 16 || (streams & (streams - 1)) != 0)
    throw std::invalid_argument("1, 2, 4, 8 or 16 streams, not " + std::to_string(streams));
  const Loops& loop = loops();
  const int64_t pieces = bytes / kPiece;
  std::atomic<uint64_t> sink{0};
  double best = 0;
  const Clock::time_point start = Clock::now();
  do {
    const Clock::time_point begin = Clock::now();
    runtime::Pool::instance().parallel_for(pieces, 4, [&](int64_t first, int64_t last, int) {
      const auto size = static_cast<size_t>((last - first) * kPiece);
      sink.fetch_add(loop.read(data + first * kPiece, size, streams), std::memory_order_relaxed);
    });
    best = std::max(best, static_cast<double>(pieces * kPiece) / since(begin));
  } while (since(start) < seconds);
  return best;
}

double operations(std::string_view kind, double seconds) {
  const Loops& loop = loops();
  double (*work)(int64_t) = nullptr;
  if (kind == "int8") {
    work = loop.int8;
  } else if (kind == "bf16") {
    work = loop.bf16;
  } else if (kind == "f32") {
    work = loop.f32;
  } else {
    throw std::invalid_argument("int8, bf16 or f32, not " + std::string(kind));
  }
  if (work == nullptr) return 0;
  runtime::Pool& pool = runtime::Pool::instance();
  double best = 0;
  const Clock::time_point start = Clock::now();
  do {
    std::atomic<int64_t> done{0};  // in thousands: sums of doubles have no atomic add everywhere
    const Clock::time_point begin = Clock::now();
    pool.parallel_for(int64_t{16} * pool.threads(), 1, [&](int64_t first, int64_t last, int) {
      const double count = work(kRounds * (last - first));
      done.fetch_add(static_cast<int64_t>(count / 1000), std::memory_order_relaxed);
    });
    best = std::max(best, static_cast<double>(done.load()) * 1000 / since(begin));
  } while (since(start) < seconds);
  return best;
}

}  // namespace ktc::limits
