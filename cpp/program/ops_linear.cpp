// Ops on packed weights: products, and rows by token id.
#include <algorithm>
#include <stdexcept>

#include "kernels/embedding.hpp"
#include "kernels/linear/linear.hpp"
#include "kernels/packed/pack.hpp"
#include "program/op_tables.hpp"
#include "runtime/pool.hpp"

namespace ktc::program {
namespace {

Format format_of(int64_t number) {
  if (number < 0 || number >= kFormats)
    throw std::invalid_argument("no such format number: " + std::to_string(number));
  return static_cast<Format>(number);
}

// Throws unless `weight` is a packed weight of that format and shape, whose address never changes.
kernels::PackedWeight packed(const Tensor& weight, int64_t format, int64_t rows, int64_t columns) {
  const kernels::PackedWeight found{format_of(format), rows, columns, weight.data<const uint8_t>()};
  kernels::check_shape(found.format, rows, columns);
  require(weight.type == Type::u8 && weight.contiguous() && found.data != nullptr &&
              weight.elements() == kernels::packed_bytes(found.format, rows, columns) &&
              reinterpret_cast<uintptr_t>(found.data) % 64 == 0,
          "weight", weight, "a packed weight at a multiple of 64 bytes");
  return found;
}

// linear: x[..., K], packed weight, bias[N] or none, y[..., N] contiguous; ints: format, N, K, threads (0:
// all). Several with one x share its quantised form.
Step make_linear(const std::vector<Call>& calls) {
  struct Product {
    kernels::PackedWeight weight;
    Tensor bias, y;
  };
  const Tensor x = calls[0].operands[0];
  const int64_t columns = calls[0].ints[2];
  const int threads = static_cast<int>(calls[0].ints[3]);
  require(x.type == Type::f32 && x.rank() > 0 && x.size(-1) == columns, "x", x,
          ("float32[..., " + std::to_string(columns) + "]").c_str());
  const int64_t tokens = columns > 0 ? x.elements() / columns : 0, x_stride = row_stride(x, "x");
  std::vector<Product> products;
  Work work;
  work.bytes = static_cast<double>(x.elements()) * 4;
  bool quantised = false;
  for (const Call& call : calls) {
    const Tensor &bias = call.operands[2], &y = call.operands[3];
    const int64_t rows = call.ints[1];
    const kernels::PackedWeight weight = packed(call.operands[1], call.ints[0], rows, columns);
    if (bias) {
      require(bias.type == Type::f32 && bias.contiguous() && bias.elements() == rows, "bias", bias,
              ("float32[" + std::to_string(rows) + "]").c_str());
    }
    require(y.type == Type::f32 && y.contiguous() && y.elements() == tokens * rows && y.size(-1) == rows, "y",
            y, ("contiguous float32[..., " + std::to_string(rows) + "]").c_str());
    products.push_back({weight, bias, y});
    quantised = !kernels::is_float(weight.format);
    work.bytes += static_cast<double>(kernels::packed_bytes(weight.format, rows, columns)) +
                  4.0 * static_cast<double>(y.elements());
    work.operations += 2.0 * static_cast<double>(tokens * rows) * static_cast<double>(columns);
  }
  if (products.size() == 1 && !quantised) {
    return {[=, product = products[0]] {
              const runtime::Pool::Limit limit(threads);
              kernels::linear(product.weight, x.data<const float>(), x_stride, tokens,
                              product.bias.data<const float>(), product.y.data<float>(), product.y.size(-1));
            },
            work};
  }
  const Tensor records = calls[0].temporary(kernels::activation_bytes(tokens, columns));
  return {[=] {
            if (tokens == 0) return;
            const runtime::Pool::Limit limit(threads);
            uint8_t* quantised_x = records.data<uint8_t>();
            kernels::quantize_activations(x.data<const float>(), x_stride, tokens, columns, quantised_x);
            for (const Product& p : products) {
              kernels::linear_quantized(p.weight, quantised_x, tokens, p.bias.data<const float>(),
                                        p.y.data<float>(), p.weight.rows);
            }
          },
          work};
}

bool join_linears(const std::vector<int64_t>& first, const std::vector<int64_t>& next) {
  const auto quantised = [](int64_t format) {
    return format >= 0 && format < kFormats && !kernels::is_float(static_cast<Format>(format));
  };
  return quantised(first[0]) && quantised(next[0]) && first[2] == next[2] && first[3] == next[3];
}

// embedding: ids int64, packed weight (or, for embedding_file, file blocks), out[..., columns] contiguous;
// ints: format, rows, columns.
Step make_embedding(const Call& call, bool file) {
  const Tensor &ids = call.operands[0], &weight = call.operands[1], &out = call.operands[2];
  const int64_t rows = call.ints[1], columns = call.ints[2], count = ids.elements();
  const Format format = format_of(call.ints[0]);
  require(ids.type == Type::i64 && ids.contiguous(), "ids", ids, "contiguous int64");
  require(out.type == Type::f32 && out.contiguous() && out.elements() == count * columns, "out", out,
          "contiguous float32[..., columns]");
  Work work;
  work.bytes = 8.0 * static_cast<double>(count * columns);
  if (!file) {
    const kernels::PackedWeight table = packed(weight, call.ints[0], rows, columns);
    return {[=] { kernels::embedding(table, ids.data<const int64_t>(), count, out.data<float>()); }, work};
  }
  if (rows < 1 || columns < 1 || columns % info(format).elements)
    throw std::invalid_argument("rows do not fit the format's blocks");
  const int64_t bytes = columns / info(format).elements * info(format).bytes;
  require(weight.type == Type::u8 && weight.contiguous() && weight.elements() / rows == bytes &&
              weight.elements() % rows == 0,
          "weight", weight, "the blocks of a file");
  return {[=] {
            kernels::embedding_blocks(format, weight.data<const uint8_t>(), rows, columns,
                                      ids.data<const int64_t>(), count, out.data<float>());
          },
          work};
}

constexpr OpEntry kOps[] = {
    {"linear", "iiIo", 4, 0, make_linear, join_linears},
    {"embedding", "iio", 3, 0, [](const std::vector<Call>& c) { return make_embedding(c[0], false); }},
    {"embedding_file", "iio", 3, 0, [](const std::vector<Call>& c) { return make_embedding(c[0], true); }},
};

}  // namespace

OpTable linear_ops() {
  return {kOps, static_cast<int>(std::size(kOps))};
}

}  // namespace ktc::program
