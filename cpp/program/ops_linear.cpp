// Ops on packed weights: products, and rows by token id.
#include <algorithm>
#include <optional>
#include <stdexcept>

#include "kernels/embedding.hpp"
#include "kernels/linear/gated.hpp"
#include "kernels/linear/linear.hpp"
#include "kernels/packed/pack.hpp"
#include "kernels/vector/tables.hpp"
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

// One linear layer of a call, checked.
struct Product {
  kernels::PackedWeight weight;
  Tensor bias, y;

  bool quantised() const { return !kernels::is_float(weight.format); }
};

// What several layers read.
struct Input {
  Tensor x;
  int64_t columns, tokens, stride;

  explicit Input(const Call& call) : x(call.operands[0]), columns(call.ints[2]) {
    require(x.type == Type::f32 && x.rank() > 0 && x.size(-1) == columns, "x", x,
            ("float32[..., " + std::to_string(columns) + "]").c_str());
    tokens = columns > 0 ? x.elements() / columns : 0;
    stride = row_stride(x, "x");
  }

  void quantise(Format format, const FillRecords& fill, uint8_t* records) const {
    if (fill) return fill(format, records);
    kernels::quantize_activations(format, x.data<const float>(), stride, tokens, columns, records);
  }
};

Product product(const Call& call, int64_t tokens) {
  const Tensor &bias = call.operands[2], &y = call.operands[3];
  const int64_t rows = call.ints[1];
  const kernels::PackedWeight weight = packed(call.operands[1], call.ints[0], rows, call.ints[2]);
  if (bias) {
    require(bias.type == Type::f32 && bias.contiguous() && bias.elements() == rows, "bias", bias,
            ("float32[" + std::to_string(rows) + "]").c_str());
  }
  require(y.type == Type::f32 && y.contiguous() && y.elements() == tokens * rows && y.size(-1) == rows, "y",
          y, ("contiguous float32[..., " + std::to_string(rows) + "]").c_str());
  return {weight, bias, y};
}

// Of the product alone, without x.
Work work_of(const kernels::PackedWeight& weight, int64_t tokens, bool writes) {
  const double values = static_cast<double>(tokens * weight.rows);
  return {static_cast<double>(kernels::packed_bytes(weight.format, weight.rows, weight.columns)) +
              (writes ? 4.0 * values : 0.0),
          2.0 * values * static_cast<double>(weight.columns)};
}

// Up to so many tokens a weight is read once, as fast as memory allows.
constexpr int64_t kReadOnce = 4;

std::vector<runtime::Region> weights_of(const std::vector<Product>& products, int64_t tokens) {
  std::vector<runtime::Region> found;
  if (tokens > kReadOnce) return found;
  for (const Product& p : products) {
    const kernels::PackedWeight& w = p.weight;
    found.push_back({w.data, kernels::packed_bytes(w.format, w.rows, w.columns)});
  }
  return found;
}

// linear: x[..., K], packed weight, bias[N] or none, y[..., N] contiguous; ints: format, N, K, threads (0:
// all). Several with one x share its quantised form.
Step make_products(const std::vector<Call>& calls, const FillRecords& fill) {
  const Input in(calls[0]);
  const int threads = static_cast<int>(calls[0].ints[3]);
  std::vector<Product> products;
  Work work;
  work.bytes = static_cast<double>(in.x.elements()) * 4;
  for (const Call& call : calls) {
    products.push_back(product(call, in.tokens));
    const Work more = work_of(products.back().weight, in.tokens, true);
    work.bytes += more.bytes;
    work.operations += more.operations;
  }
  if (products.size() == 1 && !products[0].quantised()) {
    return {[=, product = products[0]] {
              const runtime::Pool::Limit limit(threads);
              kernels::linear(product.weight, in.x.data<const float>(), in.stride, in.tokens,
                              product.bias.data<const float>(), product.y.data<float>(), product.y.size(-1));
            },
            work,
            {},
            weights_of(products, in.tokens)};
  }
  const Tensor records = calls[0].temporary(kernels::activation_bytes(in.tokens, in.columns));
  return {[=] {
            if (in.tokens == 0) return;
            const runtime::Pool::Limit limit(threads);
            uint8_t* quantised_x = records.data<uint8_t>();
            in.quantise(products[0].weight.format, fill, quantised_x);
            for (const Product& p : products) {
              kernels::linear_quantized(p.weight, quantised_x, in.tokens, p.bias.data<const float>(),
                                        p.y.data<float>(), p.weight.rows);
            }
          },
          work,
          {},
          weights_of(products, in.tokens)};
}

Step make_linear(const std::vector<Call>& calls) {
  return make_products(calls, {});
}

// The gate that an elementwise call is, of the two halves of the rows of `y`.
std::optional<kernels::Gate> gate_of(const Call& call, const Tensor& y) {
  using F = kernels::Elementwise;
  const Tensor &gate = call.operands[0], &up = call.operands[1];
  const int64_t inner = y.size(-1) / 2;
  if (!up || gate.base != y.base || up.base != y.base || gate.offset != y.offset || gate.rank() == 0 ||
      up.offset != y.offset + 4 * inner || gate.size(-1) != inner || gate.shape != up.shape ||
      gate.elements() != y.elements() / 2 || row_stride(gate, "gate") != 2 * inner ||
      row_stride(up, "up") != 2 * inner) {
    return std::nullopt;
  }
  switch (static_cast<F>(call.ints[0])) {
    case F::silu_mul:
      return kernels::Gate::silu;
    case F::gelu_erf_mul:
      return kernels::Gate::gelu;
    case F::gelu_tanh_mul:
      return kernels::Gate::gelu_tanh;
    default:
      return std::nullopt;
  }
}

// Fewer tokens leave the results of the first product in the caches, and read weights faster in long runs.
constexpr int64_t kGatedTokens = 32;

// linear, elementwise, linear: a gated feed-forward block of many tokens, whose inner activations are only
// ever written as what the second product reads.
std::optional<Step> make_gated_products(const std::vector<Call>& calls, const FillRecords& fill) {
  const Call &first = calls[0], &last = calls[2];
  const Tensor &gated = calls[1].operands[2], &x = last.operands[0];
  const Input in(first);
  const Product up = product(first, in.tokens);
  if (in.tokens < kGatedTokens || !kernels::can_gate(up.weight) || x.base != gated.base ||
      x.offset != gated.offset || x.shape != gated.shape || !x.contiguous() ||
      first.ints[3] != last.ints[3]) {
    return std::nullopt;
  }
  const std::optional<kernels::Gate> gate = gate_of(calls[1], up.y);
  const Input inner(last);
  const Product down = product(last, in.tokens);
  if (!gate || !down.quantised() || inner.tokens != in.tokens) return std::nullopt;
  const Work a = work_of(up.weight, in.tokens, false), b = work_of(down.weight, in.tokens, true);
  const Tensor records = first.temporary(kernels::activation_bytes(in.tokens, in.columns));
  const Tensor inner_records = first.temporary(kernels::activation_bytes(in.tokens, inner.columns));
  const int threads = static_cast<int>(first.ints[3]);
  return Step{[=] {
                const runtime::Pool::Limit limit(threads);
                uint8_t *quantised_x = records.data<uint8_t>(), *passed = inner_records.data<uint8_t>();
                in.quantise(up.weight.format, fill, quantised_x);
                kernels::linear_gated(up.weight, quantised_x, in.tokens, up.bias.data<const float>(), *gate,
                                      down.weight.format, passed);
                kernels::linear_quantized(down.weight, passed, in.tokens, down.bias.data<const float>(),
                                          down.y.data<float>(), down.weight.rows);
              },
              {static_cast<double>(in.x.elements()) * 4 + a.bytes + b.bytes, a.operations + b.operations}};
}

std::optional<Step> make_gated(const std::vector<Call>& calls) {
  return make_gated_products(calls, {});
}

const Chain kGated{{"elementwise", "linear"}, make_gated};

bool join_linears(const std::vector<int64_t>& first, const std::vector<int64_t>& next) {
  const auto quantised = [](int64_t format) {
    return format >= 0 && format < kFormats && !kernels::is_float(static_cast<Format>(format));
  };
  return quantised(first[0]) && quantised(next[0]) &&
         kernels::takes_groups(static_cast<Format>(first[0])) ==
             kernels::takes_groups(static_cast<Format>(next[0])) &&
         first[2] == next[2] && first[3] == next[3];
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
    {"linear", "iiIo", 4, 0, make_linear, join_linears, &kGated},
    {"embedding", "iio", 3, 0, [](const std::vector<Call>& c) { return make_embedding(c[0], false); }},
    {"embedding_file", "iio", 3, 0, [](const std::vector<Call>& c) { return make_embedding(c[0], true); }},
};

}  // namespace

std::optional<Step> linear_step(const std::vector<Call>& calls, const FillRecords& fill) {
  const Input in(calls[0]);
  if (in.tokens < kGatedTokens || !product(calls[0], in.tokens).quantised()) return std::nullopt;
  return make_products(calls, fill);
}

std::optional<Step> gated_step(const std::vector<Call>& calls, const FillRecords& fill) {
  return make_gated_products(calls, fill);
}

OpTable linear_ops() {
  return {kOps, static_cast<int>(std::size(kOps))};
}

}  // namespace ktc::program
