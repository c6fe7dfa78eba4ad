// Who does what: how the threads of a loop are ordered on NUMA nodes, what each begins with, from whom it
// steals, and which pages of a weight it therefore touches first. Nothing here runs or allocates threads.
//
// The pool's workers are ordered by node. A loop that `active` of them take part in gives each a seat in
// [0, active), spread evenly, and seat s the items [items * s / active, items * (s + 1) / active). So every
// node has a contiguous share of any loop, in proportion to its threads, whatever the loop's length; data
// that is cut at the same fractions lies on the node whose threads read it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/pool_topology.hpp"

namespace ktc::runtime {

// Where a loop's items are cut between nodes: node n begins with [first[n], first[n + 1]).
struct NodeSplit {
  int nodes;
  std::array<int64_t, kMaximumNodes + 1> first;
};

// An order of the items of a loop over outer x inner in which node n's share of the loop is its share of
// every outer item: of each expert, the rows that lie on n. On one node, item = outer * inner_count + inner.
class NodeGrid {
 public:
  struct Place {
    int64_t outer, inner;
  };

  // `split` cuts the inner items.
  NodeGrid(int64_t outer, const NodeSplit& split) : outer_(outer), split_(split) {}

  int64_t items() const { return outer_ * split_.first[static_cast<size_t>(split_.nodes)]; }
  Place at(int64_t item) const {
    size_t node = 0;
    while (item >= outer_ * split_.first[node + 1]) ++node;
    const int64_t begin = split_.first[node], width = split_.first[node + 1] - begin;
    const int64_t place = item - outer_ * begin;
    return {place / width, begin + place % width};
  }

 private:
  int64_t outer_;
  NodeSplit split_;
};

class Seats {
 public:
  // Of `workers` threads on a machine; more threads than cores go round evenly.
  Seats(const Topology& topology, int workers);

  int workers() const { return workers_; }
  int nodes() const { return static_cast<int>(first_.size()) - 1; }
  // The core of a worker, as an index into Topology::cores.
  int core_of(int worker) const { return scale(worker, cores_, workers_); }

  int worker_of(int seat, int active) const {
    return active == workers_ ? seat : scale(seat, workers_, active);
  }
  // -1: it does not take part.
  int seat_of(int worker, int active) const {
    if (active == workers_) return worker;
    const int seat = scale_up(worker, active, workers_);
    return seat < active && worker_of(seat, active) == worker ? seat : -1;
  }
  // The index of a seat's node.
  int node_of(int seat, int active) const;
  // A node's seats are [first_seat(node), first_seat(node + 1)).
  int first_seat(int node, int active) const {
    return scale_up(first_[static_cast<size_t>(node)], active, workers_);
  }

  NodeSplit split(int64_t items, int active) const;

  // Whose range a seat takes pieces from: its own, then those of its node, then the others, each beginning
  // with the next.
  class Order {
   public:
    Order(const Seats& seats, int seat, int active) : seat_(seat), end_(active), active_(active) {
      if (seats.nodes() == 1) return;
      const int node = seats.node_of(seat, active);
      begin_ = seats.first_seat(node, active);
      end_ = seats.first_seat(node + 1, active);
    }
    int operator[](int turn) const {
      const int own = end_ - begin_;
      return turn < own ? begin_ + (seat_ - begin_ + turn) % own : (end_ + turn - own) % active_;
    }

   private:
    int seat_, begin_ = 0, end_, active_;
  };

 private:
  // Rounded down and up, in 64 bits.
  static int scale(int value, int to, int from) { return static_cast<int>(int64_t{value} * to / from); }
  static int scale_up(int value, int to, int from) {
    return static_cast<int>((int64_t{value} * to + from - 1) / from);
  }

  int workers_, cores_;
  std::vector<int> first_;  // worker of each node, and workers_
};

// Bytes [begin, end) of a weight that a seat touches first, one byte a page.
struct Touch {
  size_t begin, end;
  int seat;
};

// Bytes of a page of a weight at `bytes / matrices` bytes a matrix: 2 MiB, or 4 KiB where nodes' shares of a
// matrix are so small that large pages would lie on the wrong node in good part.
size_t page_of(const Seats& seats, size_t bytes, int64_t matrices);

// The pages of a weight of `matrices` equal parts, each cut among the seats: a page goes to whom its first
// byte belongs; the one that the weight begins in, unless it begins with it, to the weight before. Offsets
// from the weight's start, which is at `address`; ascending, each within one page or more.
std::vector<Touch> first_touches(int active, uintptr_t address, size_t bytes, int64_t matrices, size_t page);

}  // namespace ktc::runtime
