// Python's view of the thread pool.
#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "bindings.hpp"
#include "runtime/pool.hpp"
#include "runtime/pool_topology.hpp"

namespace nb = nanobind;

namespace {

using ktc::runtime::Pool;

// Loops over `items` from `callers` threads at once, `rounds` times each; every item counts itself. Returns
// how many items were not run exactly `rounds * callers` times. One body throws when `fail`, and its
// exception must come back.
int64_t exercise(int64_t items, int64_t grain, int rounds, int callers, bool fail) {
  if (items < 0 || rounds < 0 || callers < 1) throw std::invalid_argument("negative sizes");
  std::vector<std::atomic<int64_t>> counts(static_cast<size_t>(items));
  std::atomic<int64_t> caught{0};
  const auto call = [&] {
    for (int round = 0; round < rounds; ++round) {
      try {
        Pool::instance().parallel_for(items, grain, [&](int64_t begin, int64_t end, int) {
          for (int64_t i = begin; i < end; ++i) counts[static_cast<size_t>(i)].fetch_add(1);
          if (fail && begin == 0) throw std::runtime_error("asked to fail");
        });
      } catch (const std::runtime_error&) {
        caught.fetch_add(1);
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < callers; ++i) threads.emplace_back(call);
  call();
  for (std::thread& thread : threads) thread.join();
  if (fail) return items > 0 ? int64_t{rounds} * callers - caught.load() : 0;
  int64_t wrong = 0;
  for (auto& count : counts) wrong += count.load() != int64_t{rounds} * callers;
  return wrong;
}

}  // namespace

void ktc::bind_pool(nb::module_& m) {
  m.def(
      "threads", [] { return Pool::instance().threads(); },
      "Threads that a kernel uses, the caller's included: one a physical core of the affinity mask, within "
      "the\n"
      "cgroup's quota, or what the environment variable KTC_THREADS said at the first use.");
  m.def(
      "set_threads", [](int count) { Pool::instance().set_threads(count); }, nb::arg("count"),
      nb::call_guard<nb::gil_scoped_release>(),
      "Changes the number of threads; waits for running kernels.\n\n"
      "Raises:\n    ValueError: `count` is not in 1..1024.");
  m.def("limit_threads", &Pool::limit_threads, nb::arg("count"),
        "Limits the threads that kernels called from this Python thread use; 0 for no limit.\n\n"
        "Returns the limit before.");
  m.def(
      "physical_cores", [] { return static_cast<int>(runtime::physical_cores().size()); },
      "Physical cores in this process's affinity mask.");
  m.def("_pool_exercise", &exercise, nb::arg("items"), nb::arg("grain"), nb::arg("rounds"),
        nb::arg("callers"), nb::arg("fail"), nb::call_guard<nb::gil_scoped_release>(),
        "For tests: loops from several threads at once; returns how many items (or exceptions) went wrong.");
}
