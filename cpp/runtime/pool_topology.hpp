// Which CPUs the process may use, seen as physical cores on NUMA nodes.
#pragma once

#include <string>
#include <vector>

namespace ktc::runtime {

// One physical core.
struct Core {
  std::vector<int> cpus;  // its logical CPUs that the process may run on, ascending
  int node = 0;           // index into Topology::nodes
};

struct Topology {
  std::vector<Core> cores;  // by node, then by first CPU; at least one
  std::vector<int> nodes;   // the system's numbers of the nodes; at least one
  double quota = 0;         // CPUs' worth of time that control groups grant; 0 for no limit

  // CPUs of one node, by its index.
  std::vector<int> cpus_of(int node) const;
  // Logical CPUs of all cores.
  int logical() const;
  // The same machine with its first nodes and their cores alone; all of them for 0 or more than there are.
  Topology first_nodes(int count) const;
};

// More nodes than these count as one.
inline constexpr int kMaximumNodes = 64;

// The cores in this thread's affinity mask that are online. A node counts if it has memory that the process
// may use and cores; cores of other nodes belong to the nearest that does. Without /sys every CPU is a core
// of one node.
//
// With a `root`, all is read below it as if it were "/" (a copy of another machine's /proc and /sys, or one
// made up), the affinity mask from proc/self/status.
Topology read_topology(const std::string& root = "");

// The CPUs that the calling thread may run on, ascending; empty where the system does not tell.
std::vector<int> affinity_mask();

// Holds the calling thread to some CPUs. A refusal (a sandbox, a changed cpuset) costs speed only.
void hold_to(const std::vector<int>& cpus);

struct ThreadChoice {
  int count;
  std::string why;  // "one a physical core", for people
};

// Threads to compute with: physical cores, limited by control groups, or what `wanted` says (the environment
// variable KTC_THREADS; null or "" for nothing): at least 1, at most the number of logical CPUs.
ThreadChoice choose_threads(const Topology& topology, const char* wanted);

}  // namespace ktc::runtime
