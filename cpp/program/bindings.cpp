// Python's view of native programs; ktc/runtime/native.py writes their text.
#include "bindings.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <tuple>

#include "kernels/address.hpp"
#include "program/program.hpp"

namespace nb = nanobind;

namespace ktc::program {
namespace {

using Terms = std::vector<int64_t>;
using PlainBuffer = std::tuple<int, Terms, uint64_t>;
using PlainView = std::tuple<int, int, Terms, std::vector<Terms>, std::vector<Terms>>;
using PlainOp = std::tuple<std::string, std::string, std::vector<int>, Terms, std::vector<double>>;

std::vector<Affine> affine(const std::vector<Terms>& lists) {
  std::vector<Affine> found;
  for (const Terms& terms : lists) found.push_back({terms});
  return found;
}

Text make_text(int symbols, const std::vector<PlainBuffer>& buffers, const std::vector<PlainView>& views,
               const std::vector<PlainOp>& ops) {
  Text text;
  if (symbols < 0) throw std::invalid_argument("native program: a negative number of symbols");
  text.symbols = symbols;
  for (const auto& [kind, bytes, address] : buffers) {
    if (kind < 0 || kind > 2) throw std::invalid_argument("native program: no such kind of buffer");
    text.buffers.push_back({static_cast<Buffer::Kind>(kind), {bytes}, kernels::pointer<uint8_t>(address)});
  }
  for (const auto& [buffer, type, offset, shape, strides] : views) {
    if (type < 0 || type >= kTypes) throw std::invalid_argument("native program: no such type");
    text.views.push_back({buffer, static_cast<Type>(type), {offset}, affine(shape), affine(strides)});
  }
  for (const auto& [kind, name, operands, ints, floats] : ops) {
    const OpEntry* entry = find_op(kind);
    if (entry == nullptr) throw std::invalid_argument("native program: no op is called " + kind);
    text.ops.push_back({entry, name, operands, ints, floats});
  }
  return text;
}

}  // namespace
}  // namespace ktc::program

void ktc::bind_program(nb::module_& m) {
  using namespace program;
  nb::class_<Workspace>(m, "Workspace", "Memory for the activations of programs that run one after another.")
      .def(nb::init<>())
      .def_prop_ro("capacity", &Workspace::capacity, "Bytes it holds now.");
  nb::class_<Program>(m, "Program",
                      "A segment of a placed graph as a flat list of ops that run without Python.\n\n"
                      "Sizes are lists of whole numbers: a constant, then a factor for each symbol.")
      .def(
          "__init__",
          [](Program* self, int symbols, const std::vector<PlainBuffer>& buffers,
             const std::vector<PlainView>& views, const std::vector<PlainOp>& ops,
             std::shared_ptr<Workspace> workspace) {
            new (self) Program(make_text(symbols, buffers, views, ops), std::move(workspace));
          },
          nb::arg("symbols"), nb::arg("buffers"), nb::arg("views"), nb::arg("ops"), nb::arg("workspace"),
          "Args:\n"
          "    symbols: how many sizes a step gives.\n"
          "    buffers: (kind, bytes, address); kinds: 0 activation, 1 external, 2 constant.\n"
          "    views: (buffer, type, offset, shape, strides); types: see `NATIVE_TYPES` in "
          "ktc/runtime/native.py.\n"
          "    ops: (kind, name, views, ints, floats); -1 for an operand left out.\n\n"
          "Raises:\n    ValueError: numbers out of range, operands missing, an op that is not in "
          "`native_ops()`.")
      .def(
          "run",
          [](Program& self, const Sizes& sizes, const std::vector<uint64_t>& addresses,
             const std::vector<int64_t>& bytes) {
            if (addresses.size() != bytes.size())
              throw std::invalid_argument("as many addresses as sizes are needed");
            std::vector<Memory> externals;
            for (size_t i = 0; i < addresses.size(); ++i)
              externals.push_back({kernels::pointer<uint8_t>(addresses[i]), bytes[i]});
            const nb::gil_scoped_release release;
            self.run(sizes, externals);
          },
          nb::arg("sizes"), nb::arg("addresses"), nb::arg("bytes"),
          "Runs a step. Addresses and bytes are those of the external buffers, in order.\n\n"
          "Raises:\n    ValueError: sizes or operands that do not fit; names the op.\n"
          "    IndexError: a token id or an index out of range.\n"
          "    MemoryError: no memory for the activations.")
      .def("workspace_bytes", &Program::workspace_bytes, nb::arg("sizes"),
           nb::call_guard<nb::gil_scoped_release>(), "Bytes of activations that a step of these sizes needs.")
      .def("count", &Program::count, nb::arg("on"), nb::call_guard<nb::gil_scoped_release>(),
           "Sets all counters to 0, and says whether steps count from now on.")
      .def(
          "counters",
          [](const Program& self) {
            std::vector<std::tuple<std::string, std::string, int64_t, double, double, double>> found;
            for (const Counter& c : self.counters())
              if (c.calls > 0) found.emplace_back(c.name, c.kind, c.calls, c.seconds, c.bytes, c.operations);
            return found;
          },
          "(node, kind, calls, seconds, bytes, operations) of each op that ran; ops that ran as one count as "
          "the first.")
      .def_prop_ro("ops", &Program::ops, "How many ops it has.");
  m.def("native_ops", &op_names, "The kinds of ops that a `Program` can have.");
}
