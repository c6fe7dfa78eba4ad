// Python's view of the machine's limits.
#include "bindings.hpp"

#include <nanobind/stl/string.h>

#include <stdexcept>

#include "limits/limits.hpp"

namespace nb = nanobind;

void ktc::bind_limits(nb::module_& m) {
  m.def(
      "read_bandwidth",
      [](uintptr_t address, int64_t bytes, int streams, double seconds) {
        if (address == 0 || address % 64 != 0) throw std::invalid_argument("an address at a multiple of 64");
        return limits::read_bandwidth(reinterpret_cast<const uint8_t*>(address), bytes, streams, seconds);
      },
      nb::arg("address"), nb::arg("bytes"), nb::arg("streams"), nb::arg("seconds"),
      nb::call_guard<nb::gil_scoped_release>(),
      "Bytes a second that the pool's threads read from a region, `streams` (1, 2, 4, 8, 16) places at a "
      "time "
      "each:\n"
      "the best pass within `seconds`.\n\n"
      "Raises:\n    ValueError: a region below 1 MiB, another number of streams.");
  m.def(
      "operations", [](const std::string& kind, double seconds) { return limits::operations(kind, seconds); },
      nb::arg("kind"), nb::arg("seconds"), nb::call_guard<nb::gil_scoped_release>(),
      "Multiply-adds of the pool's threads on registers, two operations each, in a second: \"int8\", "
      "\"bf16\" "
      "or\n"
      "\"f32\"; 0 where the level in force has no such instruction.\n\n"
      "Raises:\n    ValueError: another kind.");
}
