// What control groups of either version grant this process.
#pragma once

#include <string>

namespace ktc::runtime {

// CPUs' worth of time that the process's control groups and those above them grant, the least of them; 0 for
// no limit. `root` stands before /proc and /sys.
double cgroup_cpus(const std::string& root);

}  // namespace ktc::runtime
