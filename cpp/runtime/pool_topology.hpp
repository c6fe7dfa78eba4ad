// Which CPUs the process may use, seen as physical cores.
#pragma once

#include <vector>

namespace ktc::runtime {

// One physical core: its logical CPUs that the process may run on, ascending.
struct Core {
  std::vector<int> cpus;
};

// The physical cores in this process's affinity mask, ordered by their first CPU; at least one.
std::vector<Core> physical_cores();

// CPUs that the cgroup's quota allows, rounded down but at least 1; `fallback` where there is no quota.
int cgroup_cpu_limit(int fallback);

// Threads to compute with: physical cores in the mask, limited by the cgroup, or what KTC_THREADS says (at
// least 1, at most the number of logical CPUs in the mask).
int default_threads();

}  // namespace ktc::runtime
