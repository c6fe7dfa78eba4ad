// Reads the quotas of control groups.
#include "runtime/cgroup.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "runtime/system_text.hpp"

namespace ktc::runtime {
namespace {

// Quota of one group's folder in CPUs, 0 for none. v2: cpu.max "quota period"; v1: two files.
double quota_of(const std::string& folder) {
  const std::string limit = read_text(folder + "/cpu.max");
  char quota[32];
  double period = 0;
  if (std::sscanf(limit.c_str(), "%31s %lf", quota, &period) == 2)
    return std::string(quota) == "max" || period <= 0 ? 0 : std::max(0.0, std::atof(quota) / period);
  long micros = 0, length = 0;
  if (read_number(folder + "/cpu.cfs_quota_us", micros) &&
      read_number(folder + "/cpu.cfs_period_us", length)) {
    return micros > 0 && length > 0 ? static_cast<double>(micros) / static_cast<double>(length) : 0;
  }
  return 0;
}

double least(double a, double b) {
  return a <= 0 ? b : b <= 0 ? a : std::min(a, b);
}

// Of a group and those above it. In a container the path may be the host's and not exist below the mount: the
// folders above it, the mount itself among them, are then what is seen.
double least_quota(const std::string& mount, std::string path) {
  double found = 0;
  for (;;) {
    found = least(found, quota_of(mount + path));
    if (path.empty() || path == "/") return found;
    const size_t slash = path.find_last_of('/');
    path.erase(slash == std::string::npos ? 0 : slash);
  }
}

}  // namespace

double cgroup_cpus(const std::string& root) {
  double found = 0;
  const std::string text = read_text(root + "/proc/self/cgroup");  // lines "id:controllers:path"
  for (size_t start = 0, end; start < text.size(); start = end + 1) {
    end = std::min(text.find('\n', start), text.size());
    const std::string line = text.substr(start, end - start);
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      found = least(found, least_quota(root + "/sys/fs/cgroup", path));
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      found = least(found, least_quota(root + "/sys/fs/cgroup/" + controllers, path));
      found = least(found, least_quota(root + "/sys/fs/cgroup/cpu", path));
    }
  }
  return found;
}

}  // namespace ktc::runtime
