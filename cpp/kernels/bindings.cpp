// Python's view of the kernels.
//
// These functions take addresses and sizes and check what they can without knowing the memory behind: the
// wrappers in backends/cpu check the tensors.
#include "bindings.hpp"

#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "kernels/address.hpp"
#include "kernels/bindings_parts.hpp"
#include "kernels/embedding.hpp"
#include "kernels/linear/linear.hpp"
#include "kernels/packed/pack.hpp"
#include "runtime/pool.hpp"

namespace nb = nanobind;

namespace ktc::kernels {
namespace {

using Release = nb::call_guard<nb::gil_scoped_release>;

Format format_of(int id) {
  if (id < 0 || id >= kFormats) throw std::invalid_argument("no such format number: " + std::to_string(id));
  return static_cast<Format>(id);
}

PackedWeight weight_of(uint64_t address, int format, int64_t rows, int64_t columns) {
  const PackedWeight weight{format_of(format), rows, columns, pointer<const uint8_t>(address)};
  check_shape(weight.format, rows, columns);
  if (address % 64) throw std::invalid_argument("a packed weight starts at a multiple of 64 bytes");
  return weight;
}

void bind_packed(nb::module_& m) {
  m.def(
      "format_id", [](const std::string& name) { return static_cast<int>(parse_format(name)); },
      nb::arg("format"),
      "The number by which the kernels know a format.\n\nRaises:\n    ValueError: no kernel takes that "
      "format.");
  m.def(
      "packed_bytes",
      [](const std::string& format, int64_t rows, int64_t columns) {
        return packed_bytes(parse_format(format), rows, columns);
      },
      nb::arg("format"), nb::arg("rows"), nb::arg("columns"),
      "Bytes of a weight [rows, columns] in the packed layout.\n\n"
      "Raises:\n    ValueError: the format or the shape has no packed layout.");
  m.def(
      "file_bytes",
      [](const std::string& format, int64_t rows, int64_t columns) {
        return file_bytes(parse_format(format), rows, columns);
      },
      nb::arg("format"), nb::arg("rows"), nb::arg("columns"),
      "Bytes of a weight's blocks as a file holds them.");
  m.def(
      "pack",
      [](const std::string& format, uint64_t blocks, int64_t rows, int64_t columns, uint64_t out) {
        pack(parse_format(format), rows, columns, pointer<const uint8_t>(blocks), pointer<uint8_t>(out));
      },
      nb::arg("format"), nb::arg("blocks"), nb::arg("rows"), nb::arg("columns"), nb::arg("out"), Release(),
      "Packs file_bytes bytes at address `blocks` into packed_bytes bytes at address `out`.");
  m.def(
      "unpack_rows",
      [](const std::string& format, uint64_t packed, int64_t rows, int64_t columns, int64_t first,
         int64_t count, uint64_t out) {
        const PackedWeight weight = weight_of(packed, static_cast<int>(parse_format(format)), rows, columns);
        if (first < 0 || count < 0 || first > rows - count)
          throw std::invalid_argument("rows outside the weight");
        float* y = pointer<float>(out);
        runtime::Pool::instance().parallel_for(count, 8, [&](int64_t begin, int64_t end, int) {
          for (int64_t i = begin; i < end; ++i) unpack_row(weight, first + i, y + i * columns);
        });
      },
      nb::arg("format"), nb::arg("packed"), nb::arg("rows"), nb::arg("columns"), nb::arg("first"),
      nb::arg("count"), nb::arg("out"), Release(),
      "Rows [first, first + count) of a packed weight as float32 at address `out`.");
}

void bind_linear(nb::module_& m) {
  m.def(
      "linear",
      [](uint64_t weight, int format, int64_t rows, int64_t columns, uint64_t x, int64_t x_stride,
         int64_t tokens, uint64_t bias, uint64_t y, int64_t y_stride, int threads) {
        const runtime::Pool::Limit limit(threads);
        linear(weight_of(weight, format, rows, columns), pointer<const float>(x), x_stride, tokens,
               pointer<const float>(bias), pointer<float>(y), y_stride);
      },
      nb::arg("weight"), nb::arg("format"), nb::arg("rows"), nb::arg("columns"), nb::arg("x"),
      nb::arg("x_stride"), nb::arg("tokens"), nb::arg("bias"), nb::arg("y"), nb::arg("y_stride"),
      nb::arg("threads") = 0, Release(),
      "y[tokens, rows] = x[tokens, columns] * weight^T + bias over a packed weight; addresses, strides in "
      "floats.");
}

void bind_embedding(nb::module_& m) {
  m.def(
      "embedding",
      [](uint64_t weight, int format, int64_t rows, int64_t columns, uint64_t ids, int64_t tokens,
         uint64_t out) {
        embedding(weight_of(weight, format, rows, columns), pointer<const int64_t>(ids), tokens,
                  pointer<float>(out));
      },
      nb::arg("weight"), nb::arg("format"), nb::arg("rows"), nb::arg("columns"), nb::arg("ids"),
      nb::arg("tokens"), nb::arg("out"), Release(),
      "out[tokens, columns] float32: rows of a packed weight by int64 ids.\n\n"
      "Raises:\n    IndexError: an id outside the rows.");
  m.def(
      "embedding_blocks",
      [](uint64_t blocks, int format, int64_t rows, int64_t columns, uint64_t ids, int64_t tokens,
         uint64_t out) {
        embedding_blocks(format_of(format), pointer<const uint8_t>(blocks), rows, columns,
                         pointer<const int64_t>(ids), tokens, pointer<float>(out));
      },
      nb::arg("blocks"), nb::arg("format"), nb::arg("rows"), nb::arg("columns"), nb::arg("ids"),
      nb::arg("tokens"), nb::arg("out"), Release(),
      "The same from a weight's blocks as a file holds them.\n\nRaises:\n    IndexError: an id outside the "
      "rows.");
}

}  // namespace
}  // namespace ktc::kernels

void ktc::bind_kernels(nb::module_& m) {
  kernels::bind_packed(m);
  kernels::bind_linear(m);
  kernels::bind_embedding(m);
  kernels::bind_vector(m);
  kernels::bind_attention(m);
  kernels::bind_latent(m);
  kernels::bind_experts(m);
}
