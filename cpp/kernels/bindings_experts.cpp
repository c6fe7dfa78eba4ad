// Python's view of the routed experts; see bindings.cpp.
#include <stdexcept>
#include <string>

#include "kernels/address.hpp"
#include "kernels/bindings_parts.hpp"
#include "kernels/experts/experts.hpp"
#include "runtime/pool.hpp"

namespace nb = nanobind;

namespace ktc::kernels {
namespace {

using Release = nb::call_guard<nb::gil_scoped_release>;

Format format_of(int id) {
  if (id < 0 || id >= kFormats) throw std::invalid_argument("no such format number: " + std::to_string(id));
  return static_cast<Format>(id);
}

Experts experts_of(int gate, int64_t count, int64_t hidden, int64_t inner, int gate_up_format,
                   uint64_t gate_up, uint64_t gate_up_bias, int down_format, uint64_t down,
                   uint64_t down_bias) {
  if (gate < 0 || gate >= kGates) throw std::invalid_argument("no such gate: " + std::to_string(gate));
  if (gate_up % 64 || down % 64)
    throw std::invalid_argument("packed experts start at a multiple of 64 bytes");
  const Experts experts{static_cast<Gate>(gate),
                        count,
                        hidden,
                        inner,
                        format_of(gate_up_format),
                        format_of(down_format),
                        pointer<const uint8_t>(gate_up),
                        pointer<const uint8_t>(down),
                        pointer<const float>(gate_up_bias),
                        pointer<const float>(down_bias)};
  check_experts(experts);
  return experts;
}

}  // namespace

void bind_experts(nb::module_& m) {
  m.def(
      "experts",
      [](int gate, int64_t count, int64_t hidden, int64_t inner, int gate_up_format, uint64_t gate_up,
         uint64_t gate_up_bias, int down_format, uint64_t down, uint64_t down_bias, uint64_t x,
         uint64_t indices, uint64_t weights, int64_t tokens, int64_t chosen, uint64_t y, int threads) {
        if (tokens < 0 || chosen < 0) throw std::invalid_argument("a size is negative");
        const runtime::Pool::Limit limit(threads);
        experts(experts_of(gate, count, hidden, inner, gate_up_format, gate_up, gate_up_bias, down_format,
                           down, down_bias),
                pointer<const float>(x), pointer<const int64_t>(indices), pointer<const float>(weights),
                tokens, chosen, pointer<float>(y));
      },
      nb::arg("gate"), nb::arg("count"), nb::arg("hidden"), nb::arg("inner"), nb::arg("gate_up_format"),
      nb::arg("gate_up"), nb::arg("gate_up_bias"), nb::arg("down_format"), nb::arg("down"),
      nb::arg("down_bias"), nb::arg("x"), nb::arg("indices"), nb::arg("weights"), nb::arg("tokens"),
      nb::arg("chosen"), nb::arg("y"), nb::arg("threads") = 0, Release(),
      "y[tokens, hidden] = routed experts of x[tokens, hidden]; addresses of packed weights, float32 biases\n"
      "(0 for none), int64 indices and float32 weights [tokens, chosen].\n"
      "gate: 0 silu, 1 gelu, 2 gelu_tanh, 3 gpt_oss.\n\nRaises:\n    IndexError: an index outside the "
      "experts; y is not written.");
  m.def(
      "experts_workspace",
      [](int64_t count, int64_t hidden, int64_t inner, int gate_up_format, int down_format, int64_t tokens,
         int64_t chosen) {
        return experts_workspace(experts_of(0, count, hidden, inner, gate_up_format, 0, 0, down_format, 0, 0),
                                 tokens, chosen);
      },
      nb::arg("count"), nb::arg("hidden"), nb::arg("inner"), nb::arg("gate_up_format"),
      nb::arg("down_format"), nb::arg("tokens"), nb::arg("chosen"),
      "Bytes that a call of `experts` keeps beside its operands and its result.");
}

}  // namespace ktc::kernels
