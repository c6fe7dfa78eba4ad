// Python's view of the number formats: sizes, dequantise, quantise. ktc/weights/convert.py wraps it with
// shapes.
#include "bindings.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "formats/dequantize.hpp"
#include "formats/format.hpp"
#include "formats/quantize.hpp"

namespace nb = nanobind;

namespace ktc {
namespace {

using BytesIn = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsIn = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using MatrixIn = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// The number of blocks in `bytes` bytes, once it is clear that they hold `elements` values.
int64_t checked_blocks(const FormatInfo& f, size_t bytes, size_t elements) {
  const size_t blocks = bytes / static_cast<size_t>(f.bytes);
  if (bytes % static_cast<size_t>(f.bytes) != 0 || elements != blocks * static_cast<size_t>(f.elements)) {
    throw std::invalid_argument(std::to_string(bytes) + " bytes do not hold " + std::to_string(elements) +
                                " values as " + f.name + " (" + std::to_string(f.bytes) + " bytes for each " +
                                std::to_string(f.elements) + ")");
  }
  return static_cast<int64_t>(blocks);
}

void dequantize_into(const BytesIn& data, const std::string& name, const FloatsOut& out) {
  const Format format = parse_format(name);
  const int64_t blocks = checked_blocks(info(format), data.size(), out.size());
  nb::gil_scoped_release release;
  dequantize(format, data.data(), out.data(), blocks);
}

std::tuple<std::string, int64_t> quantize_into(const MatrixIn& x, const std::string& name,
                                               const BytesOut& out,
                                               const std::optional<FloatsIn>& importance) {
  const Format format = parse_format(name);
  const FormatInfo& f = info(format);
  const size_t columns = x.shape(1);
  if (!can_quantize(format)) throw std::invalid_argument("ktc does not quantise to " + name);
  if (columns % static_cast<size_t>(f.elements) != 0) {
    throw std::invalid_argument("rows of " + std::to_string(columns) + " values are not whole blocks of " +
                                name);
  }
  checked_blocks(f, out.size(), x.size());
  if (importance && importance->size() != columns) {
    throw std::invalid_argument("importance has " + std::to_string(importance->size()) + " values for " +
                                std::to_string(columns) + " columns");
  }
  QuantizeResult result;
  {
    nb::gil_scoped_release release;
    result = quantize(format, x.data(), out.data(), static_cast<int64_t>(x.shape(0)),
                      static_cast<int64_t>(columns), importance ? importance->data() : nullptr);
  }
  switch (result.fault) {
    case Fault::none:
      return {"", 0};
    case Fault::not_finite:
      return {"not_finite", result.index};
    case Fault::out_of_range:
      break;
  }
  return {"out_of_range", result.index};
}

}  // namespace

void bind_formats(nb::module_& m) {
  m.def(
      "formats",
      [] {
        std::vector<std::tuple<std::string, int, int>> all;
        for (int i = 0; i < kFormats; ++i) {
          const FormatInfo& f = info(static_cast<Format>(i));
          all.emplace_back(f.name, f.elements, f.bytes);
        }
        return all;
      },
      "Every number format: (name, elements in a block, bytes of a block).");
  m.def(
      "can_quantize", [](const std::string& name) { return can_quantize(parse_format(name)); },
      nb::arg("format"),
      "Whether `quantize` writes this format.\n\nRaises:\n    ValueError: unknown format.");
  m.def(
      "dequantize", &dequantize_into, nb::arg("data").noconvert(), nb::arg("format"),
      nb::arg("out").noconvert(),
      "Writes the values of `data` (uint8[bytes], blocks as in a GGUF file) to `out` (float32[elements]).\n\n"
      "Raises:\n    ValueError: unknown format, or sizes that do not fit it.");
  m.def("quantize", &quantize_into, nb::arg("x").noconvert(), nb::arg("format"), nb::arg("out").noconvert(),
        nb::arg("importance").noconvert() = nb::none(),
        "Writes the rows of `x` (float32[rows, columns]) as blocks to `out` (uint8[bytes]).\n\n"
        "`importance` (float32[columns], positive) weighs squared errors in the formats that search, q4_k "
        "and q6_k.\n"
        "Returns a fault and the index of the value at fault in flat `x`: \"\" for none, \"not_finite\", or\n"
        "\"out_of_range\" where a value or a block's scale does not fit float16.\n\n"
        "Raises:\n    ValueError: a format that is unknown or not written, or sizes that do not fit it.");
}

}  // namespace ktc
