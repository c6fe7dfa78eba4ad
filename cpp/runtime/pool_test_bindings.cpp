// What tests of the pool call: loops from several threads, machines that are made up, who does what on them.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "runtime/pool.hpp"

namespace nb = nanobind;

namespace {

using ktc::runtime::NodeGrid;
using ktc::runtime::NodeSplit;
using ktc::runtime::Pool;
using ktc::runtime::Seats;
using ktc::runtime::Touch;

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

// What each seat, alone, would take pieces from; in order.
std::vector<std::vector<int>> orders(int active) {
  const Seats seats = Pool::instance().seats();
  std::vector<std::vector<int>> found;
  for (int seat = 0; seat < active; ++seat) {
    const Seats::Order order(seats, seat, active);
    found.emplace_back();
    for (int turn = 0; turn < active; ++turn) found.back().push_back(order[turn]);
  }
  return found;
}

void check_active(int active) {
  if (active < 1 || active > Pool::instance().seats().workers())
    throw std::invalid_argument("no such number of threads");
}

}  // namespace

void ktc::bind_pool_tests(nb::module_& m) {
  m.def("_pool_exercise", &exercise, nb::arg("items"), nb::arg("grain"), nb::arg("rounds"),
        nb::arg("callers"), nb::arg("fail"), nb::call_guard<nb::gil_scoped_release>(),
        "For tests: loops from several threads at once; returns how many items (or exceptions) went wrong.");
  m.def("_pool_beyond_cpus", &Pool::allow_more_than_cpus, nb::arg("allowed"),
        "For tests: whether set_threads goes beyond the CPUs of this machine.");
  m.def(
      "_pool_topology",
      [](const std::string& root, int threads) {
        Pool::instance().set_topology(runtime::read_topology(root), threads);
      },
      nb::arg("root"), nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>(),
      "For tests: the pool goes on with `threads` threads as if on the machine below `root`; \"\" for this "
      "one.");
  m.def(
      "_pool_seats",
      [](int active) {
        check_active(active);
        const Seats seats = Pool::instance().seats();
        std::vector<std::tuple<int, int, int>> found;
        for (int seat = 0; seat < active; ++seat) {
          const int worker = seats.worker_of(seat, active);
          found.emplace_back(worker, seats.core_of(worker), seats.node_of(seat, active));
        }
        for (int worker = 0, seat = 0; worker < seats.workers(); ++worker) {
          const bool seated = seat < active && std::get<0>(found[static_cast<size_t>(seat)]) == worker;
          if (seats.seat_of(worker, active) != (seated ? seat++ : -1))
            throw std::logic_error("a worker and its seat do not agree");
        }
        return found;
      },
      nb::arg("active"),
      "For tests: worker, core and node (indices) of every seat of a loop of `active` threads.");
  m.def(
      "_pool_orders",
      [](int active) {
        check_active(active);
        return orders(active);
      },
      nb::arg("active"), "For tests: for every seat, whose ranges it takes pieces from, in order.");
  m.def(
      "_pool_grid",
      [](int64_t outer, int64_t inner) {
        if (outer < 0 || inner < 0) throw std::invalid_argument("negative sizes");
        const NodeSplit split = Pool::instance().split(inner);
        const NodeGrid grid(outer, split);
        std::vector<std::tuple<int64_t, int64_t>> places;
        for (int64_t item = 0; item < grid.items(); ++item)
          places.emplace_back(grid.at(item).outer, grid.at(item).inner);
        return std::make_tuple(
            std::vector<int64_t>(split.first.begin(), split.first.begin() + split.nodes + 1), places);
      },
      nb::arg("outer"), nb::arg("inner"),
      "For tests: where `inner` items are cut between nodes, and (outer, inner) of every item of a loop over "
      "both.");
  m.def(
      "_pool_touches",
      [](uintptr_t address, size_t bytes, int64_t matrices) {
        const Seats seats = Pool::instance().seats();
        const size_t page = runtime::page_of(seats, bytes, matrices);
        std::vector<std::tuple<size_t, size_t, int>> found;
        for (const Touch& touch : runtime::first_touches(seats.workers(), address, bytes, matrices, page))
          found.emplace_back(touch.begin, touch.end, touch.seat);
        return std::make_tuple(page, found);
      },
      nb::arg("address"), nb::arg("nbytes"), nb::arg("matrices"),
      "For tests: bytes of a page, and (begin, end, seat) of what every seat touches first of a weight.");
  m.def(
      "_pool_each",
      [](int rounds) {
        std::vector<std::vector<std::thread::id>> ran(static_cast<size_t>(Pool::instance().threads()));
        for (int round = 0; round < rounds; ++round) {
          Pool::instance().on_every_thread(
              [](void* context, int seat) {
                (*static_cast<decltype(ran)*>(context))[static_cast<size_t>(seat)].push_back(
                    std::this_thread::get_id());
              },
              &ran);
        }
        std::vector<std::thread::id> seen;
        int wrong = 0;
        for (const auto& seat : ran) {
          wrong += seat.size() != static_cast<size_t>(rounds);
          for (const std::thread::id id : seat) wrong += id != seat.front();
          for (const std::thread::id id : seen) wrong += !seat.empty() && id == seat.front();
          if (!seat.empty()) seen.push_back(seat.front());
        }
        return wrong;
      },
      nb::arg("rounds"), nb::call_guard<nb::gil_scoped_release>(),
      "For tests: runs on every thread; returns how many seats were missed, or not always one thread's own.");
}
