// The persistent thread pool that all kernels share.
//
// A parallel loop is split into one contiguous range a thread, always the same for the same length and number
// of threads, so that a thread finds in its caches (and on its NUMA node, see seats.hpp) what it read last
// time; who finishes early steals from the others, first from those of its node. Workers spin for a moment
// between loops, then sleep. A worker that wakes too late is not waited for: the loop ends when its last item
// is done, so that a thread more never makes a loop slower; see stragglers.hpp for those that lose their
// processor in the middle.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "runtime/pool_topology.hpp"
#include "runtime/seats.hpp"
#include "runtime/soon.hpp"

namespace ktc::runtime {

class Pool {
 public:
  // A loop's body: items [begin, end), run by thread `worker` in [0, threads()).
  using Body = void (*)(void* context, int64_t begin, int64_t end, int worker);

  // The process's pool; created at first use, and afresh in a child after fork. Never destroyed, so that
  // threads which still run at exit touch nothing that is gone.
  static Pool& instance();

  // Threads a loop of the calling thread uses, itself included.
  int threads() const;

  static constexpr int kMaximum = 1024;

  // Changes the number of threads, to the CPUs that the process may run on at most; waits for a running loop.
  // Throws std::invalid_argument outside [1, kMaximum], std::logic_error inside a loop.
  void set_threads(int count);

  // Holds threads to the machine's first `count` nodes (0: all), as many as choose_threads says for those,
  // and waits for a running loop; nothing where these nodes are in use already. Returns the nodes in use.
  // Throws std::invalid_argument for a negative count, std::logic_error inside a loop.
  int use_nodes(int count);

  // For tests: whether set_threads goes beyond the CPUs, where threads only take turns.
  static void allow_more_than_cpus(bool allowed);

  // What the pool knows of the machine, and of its threads' places on it.
  Topology topology() const;
  Seats seats() const;
  std::string why() const;  // this number of threads, for people

  // For tests: goes on as if on another machine, with `count` threads. The errors of set_threads.
  void set_topology(const Topology& topology, int count);

  // Where a loop of so many items on the calling thread is cut between nodes.
  NodeSplit split(int64_t items) const;

  // Runs body(seat) once for each thread that a loop would use, on that thread and no other, and waits for
  // all; for what has to happen on a certain node. Inside a loop the calling thread runs all of them.
  void on_every_thread(void (*body)(void* context, int seat), void* context);

  // Runs body over [0, items) in pieces of at most `grain` items. Returns when all are done; rethrows the
  // first exception of a body (the rest of the loop is then skipped). Loops of several callers run one after
  // another; a loop inside a loop, one of a single piece, and any loop of a pool with one thread run on the
  // calling thread.
  void run(int64_t items, int64_t grain, Body body, void* context);

  // The same for a callable (begin, end, worker).
  template <typename Callable>
  void parallel_for(int64_t items, int64_t grain, Callable&& callable) {
    using Plain = std::remove_reference_t<Callable>;
    run(
        items, grain,
        [](void* context, int64_t begin, int64_t end, int worker) {
          (*static_cast<Plain*>(context))(begin, end, worker);
        },
        const_cast<void*>(static_cast<const void*>(&callable)));
  }

  // Sets the limit of the calling thread's loops (0: none) and returns the one before; see Limit.
  static int limit_threads(int threads);

  // While it lives, the calling thread's loops use at most `threads` threads; 0 for all.
  class Limit {
   public:
    explicit Limit(int threads);
    ~Limit();
    Limit(const Limit&) = delete;
    Limit& operator=(const Limit&) = delete;

   private:
    int before_;
  };

  // While it lives, the calling thread stays on the node of the loops' first share, so that what it touches
  // and reads lies there. Nothing on a machine of one node.
  class CallerOnNode {
   public:
    CallerOnNode();
    ~CallerOnNode();
    CallerOnNode(const CallerOnNode&) = delete;
    CallerOnNode& operator=(const CallerOnNode&) = delete;

   private:
    std::vector<int> before_;
  };

  // While it lives, workers wait for loops awake: for a caller that runs many short loops in a row. Sleepers
  // are woken at once, so that they are there when the first loop starts.
  class Session {
   public:
    Session();
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    // What loops will read next, the first Soon::kRegions of it: waiting workers bring it into their caches.
    void read_soon(const std::vector<Region>& regions) const;

   private:
    void* state_;
    CallerOnNode caller_;
  };

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

 private:
  struct State;
  explicit Pool(State* state);
  void replace(State* next);
  static void forget_after_fork();

  std::atomic<State*> state_;
};

}  // namespace ktc::runtime
