// Norms, rotary embedding and elementwise functions.
#include <stdexcept>

#include "kernels/rotary.hpp"
#include "kernels/vector/vector.hpp"
#include "program/op_tables.hpp"

namespace ktc::program {
namespace {

using Calls = std::vector<Call>;

Work moved(double floats, double operations) {
  return {4 * floats, operations};
}

void require_floats(const char* name, const Tensor& x) {
  require(x.type == Type::f32 && x.rank() > 0 && x.size(-1) > 0, name, x,
          "float32 with a last dimension that is not empty");
}

void require_vector(const char* name, const Tensor& x, int64_t n) {
  require(x.type == Type::f32 && x.contiguous() && x.elements() == n, name, x,
          ("contiguous float32[" + std::to_string(n) + "]").c_str());
}

void require_result(const char* name, const Tensor& y, const Tensor& x) {
  require(y.type == Type::f32 && y.contiguous() && y.shape == x.shape, name, y,
          ("contiguous, of the shape of " + x.describe()).c_str());
}

kernels::Rows rows(const Tensor& x, const RowGrid& grid) {
  return {x.data<const float>(), grid.outer, grid.inner};
}

// Rows of equal shapes may count differently, when the rows of one lie at a single stride.
void match(RowGrid& grid, const RowGrid& to) {
  if (grid.outer_count == 1 && to.outer_count > 1) {
    grid.outer_count = to.outer_count;
    grid.inner_count = to.inner_count;
    grid.outer = grid.inner * to.inner_count;
  }
}

// rms_norm: x, weight[n], y; floats: eps, offset.
Step make_rms_norm(const Calls& calls) {
  const Call& c = calls[0];
  const Tensor &x = c.operands[0], &weight = c.operands[1], &y = c.operands[2];
  require_floats("x", x);
  const RowGrid grid = row_grid(x, "x");
  require_vector("weight", weight, grid.n);
  require_result("y", y, x);
  const float eps = static_cast<float>(c.floats[0]), offset = static_cast<float>(c.floats[1]);
  const double n = static_cast<double>(x.elements());
  return {[=] {
            kernels::rms_norm(rows(x, grid), {}, grid.outer_count, grid.inner_count, grid.n,
                              weight.data<const float>(), eps, offset, y.data<float>(), nullptr);
          },
          moved(2 * n, 4 * n)};
}

// add_rms_norm: x, residual, weight[n], norm, sum; floats: eps, offset.
Step make_add_rms_norm(const Calls& calls) {
  const Call& c = calls[0];
  const Tensor &x = c.operands[0], &residual = c.operands[1], &weight = c.operands[2];
  const Tensor &y = c.operands[3], &sum = c.operands[4];
  require_floats("x", x);
  require(residual.type == Type::f32 && residual.shape == x.shape, "residual", residual,
          "of x's type and shape");
  RowGrid grid = row_grid(x, "x"), added = row_grid(residual, "residual");
  match(grid, added);
  match(added, grid);
  require(grid.outer_count == added.outer_count && grid.inner_count == added.inner_count, "residual",
          residual, "with rows that lie as x's do");
  require_vector("weight", weight, grid.n);
  require_result("norm", y, x);
  require_result("sum", sum, x);
  const float eps = static_cast<float>(c.floats[0]), offset = static_cast<float>(c.floats[1]);
  const double n = static_cast<double>(x.elements());
  return {[=] {
            kernels::rms_norm(rows(x, grid), rows(residual, added), grid.outer_count, grid.inner_count,
                              grid.n, weight.data<const float>(), eps, offset, y.data<float>(),
                              sum.data<float>());
          },
          moved(4 * n, 5 * n)};
}

// layer_norm: x, weight[n], bias[n] or none, y; floats: eps.
Step make_layer_norm(const Calls& calls) {
  const Call& c = calls[0];
  const Tensor &x = c.operands[0], &weight = c.operands[1], &bias = c.operands[2], &y = c.operands[3];
  require_floats("x", x);
  const RowGrid grid = row_grid(x, "x");
  require_vector("weight", weight, grid.n);
  if (bias) require_vector("bias", bias, grid.n);
  require_result("y", y, x);
  const float eps = static_cast<float>(c.floats[0]);
  const double n = static_cast<double>(x.elements());
  return {[=] {
            kernels::layer_norm(rows(x, grid), grid.outer_count, grid.inner_count, grid.n,
                                weight.data<const float>(), bias.data<const float>(), eps, y.data<float>());
          },
          moved(2 * n, 7 * n)};
}

// elementwise: a, b or none, y; ints: function (kernels::Elementwise).
Step make_elementwise(const Calls& calls) {
  const Call& c = calls[0];
  const Tensor &a = c.operands[0], &b = c.operands[1], &y = c.operands[2];
  if (c.ints[0] < 0 || c.ints[0] >= kernels::kElementwise)
    throw std::invalid_argument("no such elementwise function");
  const auto function = static_cast<kernels::Elementwise>(c.ints[0]);
  using F = kernels::Elementwise;
  const bool two = function != F::silu && function != F::gelu_erf && function != F::gelu_tanh;
  require_floats("a", a);
  if (two) {
    require(b && b.type == Type::f32 && b.shape == a.shape, "b", b, "of a's type and shape");
  }
  require_result("y", y, a);
  const int64_t n = a.size(-1), count = a.elements() / n;
  const int64_t a_stride = row_stride(a, "a"), b_stride = two ? row_stride(b, "b") : 0;
  const double elements = static_cast<double>(a.elements());
  return {[=] {
            kernels::elementwise(function, a.data<const float>(), a_stride,
                                 two ? b.data<const float>() : nullptr, b_stride, count, n, y.data<float>());
          },
          moved((two ? 3 : 2) * elements, elements)};
}

// rope: q[1, H, T, D], k, cos[1, T, D'], sin, and the results for q and k, contiguous; ints: interleaved.
Step make_rope(const Calls& calls) {
  const Call& c = calls[0];
  const Tensor &cos = c.operands[2], &sin = c.operands[3];
  const Tensor& q = c.operands[0];
  require(q.rank() == 4, "q", q, "float32[1, heads, tokens, depth]");
  const int64_t tokens = q.size(2), width = cos.rank() == 3 ? cos.size(2) : -1;
  for (const Tensor* table : {&cos, &sin}) {
    require(table->type == Type::f32 && table->contiguous() && table->rank() == 3 && table->size(0) == 1 &&
                table->size(1) == tokens && table->size(2) == width && width % 2 == 0,
            "cos and sin", *table,
            ("contiguous float32[1, " + std::to_string(tokens) + ", an even number]").c_str());
  }
  double elements = 0;
  for (size_t i = 0; i < 2; ++i) {
    const Tensor& x = c.operands[i];
    require(x.type == Type::f32 && x.rank() == 4 && x.size(0) == 1 && x.size(2) == tokens &&
                x.size(3) >= width && x.stride(3) == 1,
            i ? "k" : "q", x,
            ("float32[1, heads, " + std::to_string(tokens) + ", at least " + std::to_string(width) +
             "] of contiguous heads")
                .c_str());
    require_result(i ? "k's result" : "q's result", c.operands[4 + i], x);
    elements += static_cast<double>(x.elements());
  }
  const bool interleaved = c.ints[0] != 0;
  return {[=, in = std::vector<Tensor>(c.operands.begin(), c.operands.end())] {
            for (size_t i = 0; i < 2; ++i) {
              const Tensor &x = in[i], &y = in[4 + i];
              kernels::rope({x.data<const float>(), x.stride(1), x.stride(2)}, x.size(1), tokens, x.size(3),
                            cos.data<const float>(), sin.data<const float>(), width, width, interleaved,
                            y.data<float>(), tokens * x.size(3), x.size(3));
            }
          },
          moved(2 * elements, 3 * elements)};
}

// rotary: positions int64[1, T], inv_freq[D / 2], cos[1, T, D], sin; floats: scaling.
Step make_rotary(const Calls& calls) {
  const Call& c = calls[0];
  const Tensor &positions = c.operands[0], &frequencies = c.operands[1];
  require(positions.type == Type::i64 && positions.contiguous(), "positions", positions, "contiguous int64");
  const int64_t tokens = positions.elements(), half = frequencies.elements();
  require_vector("inv_freq", frequencies, half);
  for (size_t i = 2; i < 4; ++i) {
    const Tensor& table = c.operands[i];
    require(table.type == Type::f32 && table.contiguous() && table.elements() == tokens * 2 * half,
            i == 2 ? "cos" : "sin", table, "contiguous float32[1, T, D]");
  }
  const float scaling = static_cast<float>(c.floats[0]);
  const Tensor cos = c.operands[2], sin = c.operands[3];
  const double elements = static_cast<double>(tokens * half);
  return {[=] {
            kernels::rotary(positions.data<const int64_t>(), tokens, frequencies.data<const float>(), half,
                            scaling, cos.data<float>(), sin.data<float>());
          },
          moved(4 * elements, 20 * elements)};
}

constexpr OpEntry kOps[] = {
    {"rms_norm", "iio", 0, 2, make_rms_norm, nullptr, &kNormedLinear},
    {"add_rms_norm", "iiioo", 0, 2, make_add_rms_norm, nullptr, &kAddNormedLinear},
    {"layer_norm", "iiIo", 0, 1, make_layer_norm},
    {"elementwise", "iIo", 1, 0, make_elementwise},
    {"rope", "iiiioo", 1, 0, make_rope, nullptr, &kRotatedAttention},
    {"rotary", "iioo", 0, 1, make_rotary},
};

}  // namespace

OpTable vector_ops() {
  return {kOps, static_cast<int>(std::size(kOps))};
}

}  // namespace ktc::program
