// Reads the affinity mask, the cores of /sys and the quotas of cgroup v1 and v2.
#include "runtime/pool_topology.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <utility>

#ifdef __linux__
#include <sched.h>
#endif

namespace ktc::runtime {
namespace {

// A small file of /proc or /sys; "" if it cannot be read. C's streams, because where a toolchain links
// libstdc++ statically into this module, the locale facets of C++ streams mix with those of torch's libstdc++
// and the first `file >> number` crashes.
std::string read_text(const std::string& path) {
  std::string text;
  if (std::FILE* file = std::fopen(path.c_str(), "re")) {
    char buffer[4096];
    for (size_t count; (count = std::fread(buffer, 1, sizeof buffer, file)) > 0;) text.append(buffer, count);
    std::fclose(file);
  }
  return text;
}

bool read_number(const std::string& path, long& value) {
  const std::string text = read_text(path);
  char* end = nullptr;
  value = std::strtol(text.c_str(), &end, 10);
  return end != text.c_str();
}

std::vector<int> allowed_cpus() {
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
  if (cpus.empty()) {
    const int count = std::max(1u, std::thread::hardware_concurrency());
    for (int cpu = 0; cpu < count; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

// Quota of one cgroup folder in CPUs, 0 for none. v2: cpu.max "quota period"; v1: two files.
double quota_of(const std::string& folder) {
  const std::string limit = read_text(folder + "/cpu.max");
  char quota[32];
  double period = 0;
  if (std::sscanf(limit.c_str(), "%31s %lf", quota, &period) == 2)
    return std::string(quota) == "max" || period <= 0 ? 0 : std::atof(quota) / period;
  long micros = 0, length = 0;
  if (read_number(folder + "/cpu.cfs_quota_us", micros) &&
      read_number(folder + "/cpu.cfs_period_us", length)) {
    return micros > 0 && length > 0 ? static_cast<double>(micros) / static_cast<double>(length) : 0;
  }
  return 0;
}

// Smallest quota of a cgroup and its ancestors.
double smallest_quota(const std::string& root, std::string path) {
  double smallest = 0;
  for (;;) {
    const double quota = quota_of(root + path);
    if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
    if (path.empty() || path == "/") return smallest;
    const size_t slash = path.find_last_of('/');
    path.erase(slash == std::string::npos ? 0 : slash);
  }
}

}  // namespace

std::vector<Core> physical_cores() {
  std::map<std::pair<long, long>, Core> cores;
  for (int cpu : allowed_cpus()) {
    const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    long package = 0, core = 0;
    if (!read_number(folder + "core_id", core) || !read_number(folder + "physical_package_id", package)) {
      package = -1;  // unknown topology: every logical CPU counts as a core
      core = cpu;
    }
    cores[{package, core}].cpus.push_back(cpu);
  }
  std::vector<Core> result;
  for (auto& [key, core] : cores) result.push_back(std::move(core));
  std::sort(result.begin(), result.end(), [](const Core& a, const Core& b) { return a.cpus[0] < b.cpus[0]; });
  return result;
}

int cgroup_cpu_limit(int fallback) {
  double smallest = 0;
  const auto consider = [&](double quota) {
    if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
  };
  const std::string text = read_text("/proc/self/cgroup");  // lines "id:controllers:path"
  for (size_t start = 0, end; start < text.size(); start = end + 1) {
    end = std::min(text.find('\n', start), text.size());
    const std::string line = text.substr(start, end - start);
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      consider(smallest_quota("/sys/fs/cgroup", path));
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      consider(smallest_quota("/sys/fs/cgroup/" + controllers, path));
      consider(smallest_quota("/sys/fs/cgroup/cpu", path));
    }
  }
  return smallest > 0 ? std::max(1, static_cast<int>(smallest)) : fallback;
}

int default_threads() {
  const std::vector<Core> cores = physical_cores();
  int logical = 0;
  for (const Core& core : cores) logical += static_cast<int>(core.cpus.size());
  if (const char* text = std::getenv("KTC_THREADS"); text && *text) {
    char* end = nullptr;
    const long wanted = std::strtol(text, &end, 10);
    if (end && *end == '\0' && wanted >= 1) return static_cast<int>(std::min<long>(wanted, logical));
  }
  const int count = static_cast<int>(cores.size());
  return std::min(count, cgroup_cpu_limit(count));
}

}  // namespace ktc::runtime
