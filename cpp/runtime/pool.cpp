// The thread pool: a gate that workers pass, ranges with cursors that they take pieces from, a futex to sleep
// on.
#include "runtime/pool.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/pool_topology.hpp"
#include "runtime/soon.hpp"
#include "runtime/stragglers.hpp"
#include "runtime/waiting.hpp"

#ifdef __linux__
#include <pthread.h>
#endif

namespace ktc::runtime {
namespace {

constexpr auto kSpin = std::chrono::microseconds(60);

// The gate's 64 bits: generation of the loop, whether it takes workers, how many have joined.
constexpr uint64_t kJoined = 0xffff;
constexpr uint64_t kOpen = uint64_t{1} << 16;
constexpr uint64_t kGeneration = uint64_t{1} << 17;

struct alignas(64) Range {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

// The thread's seat while it runs a loop's body, else -1.
thread_local int current_worker = -1;

// What Pool::Limit sets; 0 for no limit.
thread_local int thread_limit = 0;

}  // namespace

struct Pool::State {
  // `used` are nodes of `whole`.
  State(Topology whole, Topology used, int count, std::string reason)
      : threads(count),
        why(std::move(reason)),
        machine(std::move(whole)),
        topology(std::move(used)),
        seats(topology, count),
        ranges(count),
        desks(count) {}

  const int threads;
  const std::string why;
  const Topology machine, topology;  // all of it, and the nodes in use
  const Seats seats;
  std::vector<Range> ranges;
  std::vector<Desk> desks;  // by worker
  std::vector<std::thread> workers;

  // Held by the caller whose loop runs, and to start or stop the workers.
  std::mutex callers;
  bool started = false;

  alignas(64) std::atomic<uint64_t> gate{0};
  alignas(64) std::atomic<uint32_t> bell{0};  // counts loops; sleepers wait for a change
  std::atomic<int> sleepers{0};
  std::atomic<int> sessions{0};
  Soon soon;  // set while a session lives
  std::atomic<uint32_t> stop{0};
  alignas(64) std::atomic<int> left{0};  // workers that joined the loop and are done with it

  // The loop; written while the gate is closed and nobody is inside.
  Body body = nullptr;
  void* context = nullptr;
  int64_t grain = 1;
  int active = 1;         // threads that take part
  bool everyone = false;  // each of them runs its own range, and all are waited for
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  // Threads that a loop of the calling thread uses.
  int limited() const { return thread_limit > 0 && thread_limit < threads ? thread_limit : threads; }

  // Where a worker runs: on its core; with more threads than cores anywhere on its node, since the scheduler
  // balances better than a fixed assignment, as it does on one or two cores.
  std::vector<int> home(int worker) const {
    const Core& core = topology.cores[static_cast<size_t>(seats.core_of(worker))];
    if (threads <= static_cast<int>(topology.cores.size()) && topology.cores.size() > 2) return core.cpus;
    return seats.nodes() > 1 ? topology.cpus_of(core.node) : std::vector<int>{};
  }

  // Workers start with the first loop: an import costs nothing, and a child of fork gets its own.
  void start() {
    started = true;
    for (int worker = 1; worker < threads; ++worker) {
      workers.emplace_back([this, worker] {
        hold_to(home(worker));
        serve(worker);
      });
    }
  }

  void finish() {
    started = true;  // whoever still holds this state runs without workers
    stop.store(1);
    wake_all(stop);
    bell.fetch_add(1);
    wake_all(bell);
    for (std::thread& worker : workers) worker.join();
    workers.clear();
  }

  void take(Range& range, int seat) {
    while (range.next.load(std::memory_order_relaxed) < range.end &&
           !failed.load(std::memory_order_relaxed)) {
      const int64_t begin = range.next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= range.end) return;
      body(context, begin, begin + grain < range.end ? begin + grain : range.end, seat);
    }
  }

  void work(int worker) {
    const int seat = seats.seat_of(worker, active);
    if (seat < 0) return;
    current_worker = seat;
    try {
      const Seats::Order order(seats, seat, active);
      const int turns = everyone ? 1 : active;
      for (int turn = 0; turn < turns; ++turn) take(ranges[order[turn]], seat);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
    current_worker = -1;
  }

  bool join_loop(uint64_t seen) {
    while (seen & kOpen) {
      if (gate.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire, std::memory_order_acquire))
        return true;
    }
    return false;
  }

  void serve(int worker) {
    Desk& desk = desks[static_cast<size_t>(worker)];
    desk.sit_down();
    uint64_t last = 0;  // generation served or seen closed
    Soon::Place place;
    for (;;) {
      const uint32_t rung = bell.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      const uint64_t seen = gate.load(std::memory_order_acquire);
      if ((seen & kOpen) && seen / kGeneration != last) {
        last = seen / kGeneration;
        if (join_loop(seen)) {
          desk.busy.store(true, std::memory_order_relaxed);
          work(worker);
          desk.busy.store(false, std::memory_order_relaxed);
          left.fetch_add(1, std::memory_order_release);
          if (desk.sent_off.load(std::memory_order_relaxed)) sleep_on(stop, 0, desk.next_rest());
        }
        continue;
      }
      wait_for_bell(rung, worker, place);
    }
  }

  void wait_for_bell(uint32_t rung, int worker, Soon::Place& place) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (;;) {
      for (int i = 0; i < 64; ++i) {
        if (bell.load(std::memory_order_acquire) != rung) return;
        if (sessions.load(std::memory_order_relaxed) > 0) soon.ask(place, worker, threads);
        relax();
      }
      if (std::chrono::steady_clock::now() < until) continue;
      if (sessions.load(std::memory_order_relaxed) == 0) break;
      std::this_thread::yield();  // awake, but not in the way of others
    }
    sleepers.fetch_add(1);
    while (bell.load() == rung) sleep_on(bell, rung);
    sleepers.fetch_sub(1);
  }

  bool all_taken() const {
    if (failed.load(std::memory_order_relaxed)) return true;
    for (int i = 0; i < active; ++i)
      if (ranges[i].next.load(std::memory_order_relaxed) < ranges[i].end) return false;
    return true;
  }

  void await(int joined) {
    for (int spins = 0; spins < 4096; ++spins) {
      if (left.load(std::memory_order_acquire) == joined) return;
      relax();
    }
    Overseer overseer(desks);
    while (left.load(std::memory_order_acquire) != joined) {
      overseer.look();
      std::this_thread::yield();
    }
  }

  void run(int64_t items, int64_t piece, int wanted, Body loop, void* argument, bool all = false) {
    const std::lock_guard<std::mutex> lock(callers);
    if (!started) start();
    everyone = all && !workers.empty();  // without workers (see set_threads) the caller does it all
    body = loop;
    context = argument;
    grain = piece;
    active = wanted;
    const int64_t pieces = (items + grain - 1) / grain;
    for (int i = 0; i < active; ++i) {
      ranges[i].next.store(pieces * i / active * grain, std::memory_order_relaxed);
      const int64_t end = pieces * (i + 1) / active * grain;
      ranges[i].end = end < items ? end : items;
    }
    failed.store(false, std::memory_order_relaxed);
    error = nullptr;
    left.store(0, std::memory_order_relaxed);
    const uint64_t generation = gate.load(std::memory_order_relaxed) / kGeneration + 1;
    gate.store(generation * kGeneration | kOpen, std::memory_order_release);
    bell.fetch_add(1);
    if (sleepers.load() > 0) wake_all(bell);

    work(0);
    while (everyone && !all_taken()) std::this_thread::yield();

    // Every piece is taken; wait only for those who joined.
    const uint64_t joined = gate.fetch_and(~kOpen, std::memory_order_acq_rel) & kJoined;
    await(static_cast<int>(joined));
    if (error) std::rethrow_exception(error);
  }
};

namespace {
Pool* existing = nullptr;
}

Pool::Pool(State* state) : state_(state) {}

// A child of fork has the forking thread only, and perhaps a lock that another thread held: it starts afresh
// and leaves the old state alone (its threads do not exist here, so it cannot be destroyed).
void Pool::forget_after_fork() {
  current_worker = -1;
  const State& old = *existing->state_.load();
  existing->state_ = new State(old.machine, old.topology, old.threads, old.why);
}

Pool& Pool::instance() {
  static Pool* const pool = [] {
    const Topology machine = read_topology();
    const ThreadChoice choice = choose_threads(machine, std::getenv("KTC_THREADS"));
    existing = new Pool(new State(machine, machine, choice.count, choice.why));
#ifdef __linux__
    pthread_atfork(nullptr, nullptr, &Pool::forget_after_fork);
#endif
    return existing;
  }();
  return *pool;
}

Topology Pool::topology() const {
  return state_.load(std::memory_order_acquire)->topology;
}

Seats Pool::seats() const {
  return state_.load(std::memory_order_acquire)->seats;
}

std::string Pool::why() const {
  return state_.load(std::memory_order_acquire)->why;
}

NodeSplit Pool::split(int64_t items) const {
  const State& state = *state_.load(std::memory_order_acquire);
  return state.seats.split(items, state.limited());
}

int Pool::threads() const {
  return state_.load(std::memory_order_acquire)->limited();
}

int Pool::limit_threads(int threads) {
  const int before = thread_limit;
  thread_limit = threads > 0 ? threads : 0;
  return before;
}

Pool::Limit::Limit(int threads) : before_(thread_limit) {
  thread_limit = threads;
}

Pool::Limit::~Limit() {
  thread_limit = before_;
}

Pool::CallerOnNode::CallerOnNode() {
  const State& state = *instance().state_.load(std::memory_order_acquire);
  if (state.seats.nodes() == 1 || current_worker >= 0) return;
  before_ = affinity_mask();
  hold_to(state.topology.cpus_of(state.topology.cores.front().node));
}

Pool::CallerOnNode::~CallerOnNode() {
  hold_to(before_);
}

Pool::Session::Session() {
  State& state = *instance().state_.load(std::memory_order_acquire);
  state_ = &state;
  state.sessions.fetch_add(1);
  if (state.sleepers.load() > 0) {
    state.bell.fetch_add(1);
    wake_all(state.bell);
  }
}

Pool::Session::~Session() {
  static_cast<State*>(state_)->sessions.fetch_sub(1);
}

void Pool::Session::read_soon(const std::vector<Region>& regions) const {
  static_cast<State*>(state_)->soon.set(regions.data(), static_cast<int>(regions.size()));
}

namespace {

void check_outside() {
  if (current_worker >= 0)
    throw std::logic_error("the number of threads cannot change inside a parallel loop");
}

void check_count(int count) {
  if (count < 1 || count > Pool::kMaximum) {
    throw std::invalid_argument("a thread pool has 1 to " + std::to_string(Pool::kMaximum) +
                                " threads, not " + std::to_string(count));
  }
  check_outside();
}

std::mutex changes;
std::atomic<bool> beyond_cpus{false};

}  // namespace

void Pool::allow_more_than_cpus(bool allowed) {
  beyond_cpus.store(allowed);
}

void Pool::set_threads(int count) {
  check_count(count);
  const std::lock_guard<std::mutex> change(changes);
  const State& old = *state_.load();
  if (!beyond_cpus.load()) count = std::min(count, old.topology.logical());
  if (count != old.threads) replace(new State(old.machine, old.topology, count, "set by the program"));
}

int Pool::use_nodes(int count) {
  if (count < 0) throw std::invalid_argument("no number of NUMA nodes: " + std::to_string(count));
  check_outside();
  const std::lock_guard<std::mutex> change(changes);
  const State& old = *state_.load();
  const Topology used = old.machine.first_nodes(count);
  if (used.nodes.size() != old.topology.nodes.size()) {
    const ThreadChoice choice = choose_threads(used, std::getenv("KTC_THREADS"));
    const std::string nodes =
        std::to_string(used.nodes.size()) + " of " + std::to_string(old.machine.nodes.size()) + " NUMA nodes";
    replace(new State(old.machine, used, choice.count, choice.why + ", " + nodes));
  }
  return static_cast<int>(used.nodes.size());
}

void Pool::set_topology(const Topology& topology, int count) {
  check_count(count);
  const std::lock_guard<std::mutex> change(changes);
  replace(new State(topology, topology, count, "set by the program"));
}

void Pool::replace(State* next) {
  State* old = state_.load();
  const std::lock_guard<std::mutex> lock(old->callers);
  state_.store(next);
  old->finish();
  // Another caller may be about to lock `old`: it finds no workers and runs alone. So it is never freed;
  // changing the number of threads is rare and a state is small.
}

void Pool::on_every_thread(void (*body)(void* context, int seat), void* context) {
  const CallerOnNode caller;
  struct Call {
    void (*body)(void*, int);
    void* context;
  } call{body, context};
  const Body loop = [](void* argument, int64_t begin, int64_t end, int) {
    const Call& each = *static_cast<const Call*>(argument);
    for (int64_t seat = begin; seat < end; ++seat) each.body(each.context, static_cast<int>(seat));
  };
  State& state = *state_.load(std::memory_order_acquire);
  const int active = state.limited();
  if (current_worker >= 0 || active == 1) return loop(&call, 0, active, 0);
  state.run(active, 1, active, loop, &call, true);
}

void Pool::run(int64_t items, int64_t grain, Body body, void* context) {
  if (items <= 0) return;
  if (grain < 1) grain = 1;
  State& state = *state_.load(std::memory_order_acquire);
  const int active = state.limited();
  if (current_worker >= 0 || items <= grain || active == 1) {
    body(context, 0, items, current_worker >= 0 ? current_worker : 0);
    return;
  }
  state.run(items, grain, active, body, context);
}

}  // namespace ktc::runtime
