// Seats: see seats.hpp.
#include "runtime/seats.hpp"

#include <algorithm>

namespace ktc::runtime {
namespace {

constexpr size_t kSmallPage = 4096, kLargePage = size_t{2} << 20;
// Large pages that a node's share of a matrix must span: about half of one at either end is misplaced.
constexpr size_t kLargePages = 4;

}  // namespace

Seats::Seats(const Topology& topology, int workers)
    : workers_(workers), cores_(static_cast<int>(topology.cores.size())) {
  first_.push_back(0);
  for (int worker = 1; worker < workers; ++worker) {
    const auto node = [&](int w) { return topology.cores[static_cast<size_t>(core_of(w))].node; };
    if (node(worker) != node(worker - 1)) first_.push_back(worker);
  }
  first_.push_back(workers);
}

int Seats::node_of(int seat, int active) const {
  const int worker = worker_of(seat, active);
  const auto next = std::upper_bound(first_.begin(), first_.end() - 1, worker);
  return static_cast<int>(next - first_.begin()) - 1;
}

NodeSplit Seats::split(int64_t items, int active) const {
  NodeSplit split;
  split.nodes = nodes();
  for (int node = 0; node <= split.nodes; ++node)
    split.first[static_cast<size_t>(node)] = items * first_seat(node, active) / active;
  return split;
}

size_t page_of(const Seats& seats, size_t bytes, int64_t matrices) {
  const size_t share = bytes / static_cast<size_t>(matrices) / static_cast<size_t>(seats.nodes());
  return share >= kLargePages * kLargePage ? kLargePage : kSmallPage;
}

std::vector<Touch> first_touches(int active, uintptr_t address, size_t bytes, int64_t matrices, size_t page) {
  std::vector<Touch> found;
  const size_t count = static_cast<size_t>(matrices), size = bytes / count;
  // Offset of the first page that starts at or behind an offset.
  const auto page_from = [&](size_t offset) { return (address + offset + page - 1) / page * page - address; };
  for (size_t matrix = 0; matrix < count; ++matrix) {
    const size_t start = matrix * size, length = matrix + 1 == count ? bytes - start : size;
    for (int seat = 0; seat < active; ++seat) {
      const auto cut = [&](int at) {
        return start + length * static_cast<size_t>(at) / static_cast<size_t>(active);
      };
      const size_t from = page_from(cut(seat)), to = cut(seat + 1);
      if (from >= to) continue;
      if (!found.empty() && found.back().seat == seat && found.back().end >= from) {
        found.back().end = to;
      } else {
        found.push_back({from, to, seat});
      }
    }
  }
  return found;
}

}  // namespace ktc::runtime
