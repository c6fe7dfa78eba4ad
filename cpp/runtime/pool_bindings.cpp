// Python's view of the thread pool and the machine's topology.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "runtime/pool.hpp"
#include "runtime/pool_topology.hpp"

namespace nb = nanobind;

using ktc::runtime::Pool;

void ktc::bind_pool(nb::module_& m) {
  m.def(
      "threads", [] { return Pool::instance().threads(); },
      "Threads that a kernel uses, the caller's included: one a physical core of the affinity mask, "
      "within the\ncgroup's quota, or what the environment variable KTC_THREADS said at the first use.");
  m.def(
      "set_threads", [](int count) { Pool::instance().set_threads(count); }, nb::arg("count"),
      nb::call_guard<nb::gil_scoped_release>(),
      "Changes the number of threads, to the CPUs that the process may run on at most; "
      "waits for running kernels.\n\n"
      "Raises:\n    ValueError: `count` is not in 1..1024.");
  m.def(
      "use_nodes", [](int count) { return Pool::instance().use_nodes(count); }, nb::arg("count"),
      nb::call_guard<nb::gil_scoped_release>(),
      "Holds kernels to the machine's first `count` NUMA nodes, 0 for all, "
      "with one thread a physical core of theirs;\n"
      "waits for running kernels. Returns the nodes in use, which are fewer where the machine has fewer.\n\n"
      "Raises:\n    ValueError: `count` is negative.");
  m.def("limit_threads", &Pool::limit_threads, nb::arg("count"),
        "Limits the threads that kernels called from this Python thread use; 0 for no limit.\n\n"
        "Returns the limit before.");
  m.def(
      "physical_cores", [] { return static_cast<int>(Pool::instance().topology().cores.size()); },
      "Physical cores in this process's affinity mask.");
  m.def("why_threads", [] { return Pool::instance().why(); }, "Why there are so many threads, in words.");
  m.def(
      "topology",
      [](const std::string& root, const std::string& wanted) {
        const runtime::Topology found =
            root.empty() ? Pool::instance().topology() : runtime::read_topology(root);
        const runtime::ThreadChoice choice = runtime::choose_threads(found, wanted.c_str());
        std::vector<std::vector<std::vector<int>>> cores(found.nodes.size());
        for (const runtime::Core& core : found.cores)
          cores[static_cast<size_t>(core.node)].push_back(core.cpus);
        return std::make_tuple(found.nodes, cores, found.quota, choice.count, choice.why);
      },
      nb::arg("root") = "", nb::arg("wanted") = "",
      "The machine as the pool sees it, or a copy of another's /proc and /sys below the folder `root`.\n\n"
      "Returns (numbers of the NUMA nodes with cores and memory, for each the logical CPUs of its cores, "
      "CPUs that\n"
      "the control groups grant or 0, threads to compute with when KTC_THREADS is `wanted`, why).");
  bind_pool_tests(m);
}
