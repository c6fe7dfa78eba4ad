// Python's view of the instruction-set level.
#include "bindings.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "isa/isa.hpp"

namespace nb = nanobind;

void ktc::bind_isa(nb::module_& m) {
  m.def(
      "isa", [] { return std::string(isa::name(isa::current())); },
      "The instruction-set level in force: \"generic\", \"avx2\", \"avx512\", \"avx512vnni\" or \"amx\".\n\n"
      "It is the machine's, capped by the environment variable KTC_CPU_ISA, which is read once, at first "
      "use.\n\n"
      "Raises:\n    RuntimeError: KTC_CPU_ISA names an unknown level or one that the machine lacks.");
  m.def(
      "isa_levels",
      [] {
        std::vector<std::string> names;
        for (int i = 0; i <= static_cast<int>(isa::machine()); ++i) {
          names.emplace_back(isa::name(static_cast<isa::Level>(i)));
        }
        return names;
      },
      "The levels that this machine can run, lowest first, whatever KTC_CPU_ISA says.");
  m.def(
      "set_isa", [](const std::string& level) { isa::set(isa::parse(level)); }, nb::arg("level"),
      "Puts another level in force, for tests; not while kernels run.\n\n"
      "Raises:\n    RuntimeError: `level` is unknown, or the machine lacks it.");
}
