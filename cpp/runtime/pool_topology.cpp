// Reads the affinity mask, the cores and the nodes of /sys.
#include "runtime/pool_topology.hpp"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <thread>
#include <tuple>
#include <utility>

#include "runtime/cgroup.hpp"
#include "runtime/system_text.hpp"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace ktc::runtime {

std::vector<int> affinity_mask() {
  std::vector<int> cpus;
#ifdef __linux__
  // The kernel refuses (EINVAL) a mask smaller than its own: grow until it fits.
  for (int capacity = 1024; capacity <= 1 << 16; capacity *= 2) {
    cpu_set_t* set = CPU_ALLOC(capacity);
    if (!set) break;
    const size_t bytes = CPU_ALLOC_SIZE(capacity);
    CPU_ZERO_S(bytes, set);
    const bool done = sched_getaffinity(0, bytes, set) == 0;
    const bool retry = !done && errno == EINVAL;
    for (int cpu = 0; done && cpu < capacity; ++cpu) {
      if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(cpu);
    }
    CPU_FREE(set);
    if (!retry) break;
  }
#endif
  return cpus;
}

void hold_to(const std::vector<int>& cpus) {
#ifdef __linux__
  if (cpus.empty()) return;
  const int highest = cpus.back() + 1;
  cpu_set_t* set = CPU_ALLOC(highest);
  if (!set) return;
  const size_t bytes = CPU_ALLOC_SIZE(highest);
  CPU_ZERO_S(bytes, set);
  for (int cpu : cpus) CPU_SET_S(cpu, bytes, set);
  (void)pthread_setaffinity_np(pthread_self(), bytes, set);
  CPU_FREE(set);
#else
  (void)cpus;
#endif
}

namespace {

bool contains(const std::vector<int>& sorted, int number) {
  return std::binary_search(sorted.begin(), sorted.end(), number);
}

std::vector<int> allowed_cpus(const std::string& root, const std::string& status) {
  std::vector<int> cpus = root.empty() ? affinity_mask() : parse_list(field_of(status, "Cpus_allowed_list"));
  const std::vector<int> online = parse_list(read_text(root + "/sys/devices/system/cpu/online"));
  if (cpus.empty()) cpus = online;
  if (cpus.empty()) {
    const int count = root.empty() ? static_cast<int>(std::thread::hardware_concurrency()) : 1;
    for (int cpu = 0; cpu < std::max(1, count); ++cpu) cpus.push_back(cpu);
  }
  std::vector<int> both;
  for (int cpu : cpus)
    if (contains(online, cpu)) both.push_back(cpu);
  return both.empty() ? cpus : both;
}

std::vector<Core> cores_of(const std::string& root, const std::vector<int>& cpus) {
  std::map<std::tuple<long, long, long>, Core> cores;
  for (int cpu : cpus) {
    const std::string folder = root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    long package = 0, die = 0, core = 0;
    if (!read_number(folder + "core_id", core) || !read_number(folder + "physical_package_id", package)) {
      package = LONG_MIN;  // unknown topology: every logical CPU counts as a core
      core = cpu;
    } else if (!read_number(folder + "die_id", die)) {
      die = 0;
    }
    cores[{package, die, core}].cpus.push_back(cpu);
  }
  std::vector<Core> result;
  for (auto& [key, core] : cores) result.push_back(std::move(core));
  return result;
}

// The nodes of a system, by its own numbers.
struct Nodes {
  std::vector<int> online;
  std::vector<int> usable;  // with memory that the process may use
  std::map<int, int> of_cpu;
  std::map<int, std::vector<long>> distances;  // of a node, to those online in their order

  Nodes(const std::string& root, const std::string& status) {
    const std::string base = root + "/sys/devices/system/node/";
    online = parse_list(read_text(base + "online"));
    const std::vector<int> with_memory = parse_list(read_text(base + "has_memory"));
    const std::vector<int> allowed = parse_list(field_of(status, "Mems_allowed_list"));
    for (int node : online) {
      const std::string folder = base + "node" + std::to_string(node) + "/";
      for (int cpu : parse_list(read_text(folder + "cpulist"))) of_cpu[cpu] = node;
      const std::string text = read_text(folder + "distance");
      const char* at = text.c_str();
      for (char* end; std::strtol(at, &end, 10), end != at; at = end)
        distances[node].push_back(std::strtol(at, nullptr, 10));
      const bool memory = with_memory.empty() || contains(with_memory, node);
      if (memory && (allowed.empty() || contains(allowed, node))) usable.push_back(node);
    }
  }

  // The usable node whose memory is nearest to a CPU.
  int nearest(int cpu) const {
    const auto home = of_cpu.find(cpu);
    if (home == of_cpu.end()) return usable.front();
    if (contains(usable, home->second)) return home->second;
    int best = usable.front();
    long least = LONG_MAX;
    const auto row = distances.find(home->second);
    for (size_t i = 0; row != distances.end() && i < row->second.size() && i < online.size(); ++i) {
      if (contains(usable, online[i]) && row->second[i] < least) {
        least = row->second[i];
        best = online[i];
      }
    }
    return best;
  }
};

std::string decimal(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

}  // namespace

std::vector<int> Topology::cpus_of(int node) const {
  std::vector<int> found;
  for (const Core& core : cores)
    if (core.node == node) found.insert(found.end(), core.cpus.begin(), core.cpus.end());
  std::sort(found.begin(), found.end());
  return found;
}

int Topology::logical() const {
  size_t count = 0;
  for (const Core& core : cores) count += core.cpus.size();
  return static_cast<int>(count);
}

Topology Topology::first_nodes(int count) const {
  Topology found = *this;
  if (count < 1 || count >= static_cast<int>(nodes.size())) return found;
  found.nodes.resize(static_cast<size_t>(count));
  std::erase_if(found.cores, [count](const Core& core) { return core.node >= count; });
  return found;
}

Topology read_topology(const std::string& root) {
  const std::string status = read_text(root + "/proc/self/status");
  Topology result;
  result.cores = cores_of(root, allowed_cpus(root, status));
  result.quota = cgroup_cpus(root);
  const Nodes nodes(root, status);
  std::map<int, int> index;  // of the nodes that have cores, by number
  if (!nodes.usable.empty())
    for (Core& core : result.cores) index[core.node = nodes.nearest(core.cpus[0])] = 0;
  if (index.empty() || index.size() > kMaximumNodes) {
    const int number = nodes.usable.empty() ? 0 : nodes.usable.front();
    index = {{number, 0}};
    for (Core& core : result.cores) core.node = number;
  }
  for (auto& [number, place] : index) {
    place = static_cast<int>(result.nodes.size());
    result.nodes.push_back(number);
  }
  for (Core& core : result.cores) core.node = index.at(core.node);
  std::sort(result.cores.begin(), result.cores.end(), [](const Core& a, const Core& b) {
    return std::pair(a.node, a.cpus[0]) < std::pair(b.node, b.cpus[0]);
  });
  return result;
}

ThreadChoice choose_threads(const Topology& topology, const char* wanted) {
  const int logical = topology.logical();
  std::string ignored;
  if (wanted && *wanted) {
    const std::string text = wanted;
    char* end = nullptr;
    const long number = std::strtol(wanted, &end, 10);
    if (*end == '\0' && number > logical) {
      return {logical,
              "KTC_THREADS asks for " + text + ", and there are " + std::to_string(logical) + " CPUs"};
    }
    if (*end == '\0' && number >= 1) return {static_cast<int>(number), "KTC_THREADS"};
    ignored = "; KTC_THREADS is ignored, since '" + text.substr(0, 40) + "' is no number of threads";
  }
  const int cores = static_cast<int>(topology.cores.size());
  if (topology.quota > 0 && topology.quota < cores) {
    const int count = std::max(1, static_cast<int>(topology.quota));
    return {count, "the control group grants " + decimal(topology.quota) + " CPUs" + ignored};
  }
  return {cores, "one a physical core" + ignored};
}

}  // namespace ktc::runtime
