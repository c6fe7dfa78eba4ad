// Routers and routed experts.
#include <stdexcept>

#include "kernels/experts/experts.hpp"
#include "kernels/packed/pack.hpp"
#include "kernels/router/router.hpp"
#include "program/op_tables.hpp"
#include "runtime/pool.hpp"

namespace ktc::program {
namespace {

// One of the first `count` values of an enumeration.
template <typename Kind>
Kind kind_of(int64_t number, int64_t count, const char* what) {
  if (number < 0 || number >= count)
    throw std::invalid_argument(std::string("no such ") + what + ": " + std::to_string(number));
  return static_cast<Kind>(number);
}

// router: logits[T, E], bias[E] or none, weights[T, k], indices int64[T, k]; ints: top_k, scoring, groups,
// kept_groups, group_score, normalize; floats: scale.
Step make_router(const std::vector<Call>& calls) {
  const Call& c = calls[0];
  const Tensor &logits = c.operands[0], &bias = c.operands[1], &weights = c.operands[2],
               &indices = c.operands[3];
  require(logits.type == Type::f32 && logits.rank() == 2 && logits.stride(1) == 1, "logits", logits,
          "float32[T, E] of contiguous rows");
  kernels::Router r{};
  r.stride = logits.stride(0);
  r.tokens = logits.size(0);
  r.experts = logits.size(1);
  r.top_k = c.ints[0];
  r.scoring = kind_of<kernels::Scoring>(c.ints[1], 3, "scoring");
  r.groups = c.ints[2];
  r.kept_groups = c.ints[3];
  r.group_score = kind_of<kernels::GroupScore>(c.ints[4], 2, "group score");
  r.normalize = c.ints[5] != 0;
  r.scale = static_cast<float>(c.floats[0]);
  if (bias) {
    require(bias.type == Type::f32 && bias.contiguous() && bias.elements() == r.experts, "bias", bias,
            "contiguous float32[E]");
  }
  const std::vector<int64_t> shape{r.tokens, r.top_k};
  require(weights.type == Type::f32 && weights.contiguous() && weights.shape == shape, "weights", weights,
          "contiguous float32[T, k]");
  require(indices.type == Type::i64 && indices.contiguous() && indices.shape == shape, "indices", indices,
          "contiguous int64[T, k]");
  kernels::check_router(r);
  const double elements = static_cast<double>(logits.elements());
  return {[=] {
            kernels::Router now = r;
            now.logits = logits.data<const float>();
            now.bias = bias.data<const float>();
            now.weights = weights.data<float>();
            now.indices = indices.data<int64_t>();
            kernels::router(now);
          },
          {4 * elements, elements},
          {}};
}

const uint8_t* packed_experts(const char* name, const Tensor& weight, Format format, int64_t count,
                              int64_t rows, int64_t columns) {
  kernels::check_shape(format, rows, columns);
  const int64_t one = (kernels::packed_bytes(format, rows, columns) + 63) / 64 * 64;
  const uint8_t* data = weight.data<const uint8_t>();
  require(weight.type == Type::u8 && weight.contiguous() && weight.elements() == count * one &&
              data != nullptr && reinterpret_cast<uintptr_t>(data) % 64 == 0,
          name, weight, "packed experts at a multiple of 64 bytes");
  return data;
}

// experts: x[T, K], indices int64[T, k], weights[T, k], gate_up, down (packed), gate_up_bias, down_bias or
// none, y[T, K]; ints: gate (kernels::Gate), formats of gate_up and down, count, inner, threads (0: all).
Step make_experts(const std::vector<Call>& calls) {
  const Call& c = calls[0];
  const Tensor &x = c.operands[0], &indices = c.operands[1], &weights = c.operands[2],
               &up_bias = c.operands[5], &down_bias = c.operands[6], &y = c.operands[7];
  require(x.type == Type::f32 && x.contiguous() && x.rank() == 2, "x", x, "contiguous float32[T, K]");
  const int64_t tokens = x.size(0), hidden = x.size(1);
  require(
      indices.type == Type::i64 && indices.contiguous() && indices.rank() == 2 && indices.size(0) == tokens,
      "indices", indices, "contiguous int64[T, k]");
  require(weights.type == Type::f32 && weights.contiguous() && weights.shape == indices.shape, "weights",
          weights, "contiguous float32[T, k], as indices");
  require(y.type == Type::f32 && y.contiguous() && y.shape == x.shape, "y", y, "contiguous, of x's shape");
  kernels::Experts e{};
  e.gate = kind_of<kernels::Gate>(c.ints[0], kernels::kGates, "activation");
  e.gate_up_format = kind_of<Format>(c.ints[1], kFormats, "format");
  e.down_format = kind_of<Format>(c.ints[2], kFormats, "format");
  e.count = c.ints[3];
  e.hidden = hidden;
  e.inner = c.ints[4];
  if (e.count < 1 || e.inner < 1) throw std::invalid_argument("there are no experts");
  e.gate_up = packed_experts("gate_up", c.operands[3], e.gate_up_format, e.count, 2 * e.inner, hidden);
  e.down = packed_experts("down", c.operands[4], e.down_format, e.count, hidden, e.inner);
  for (const Tensor* bias : {&up_bias, &down_bias}) {
    const int64_t count = e.count * (bias == &up_bias ? 2 * e.inner : hidden);
    require(!*bias || (bias->type == Type::f32 && bias->contiguous() && bias->elements() == count),
            bias == &up_bias ? "gate_up_bias" : "down_bias", *bias, "contiguous float32 for every expert");
  }
  kernels::check_experts(e);
  const int threads = static_cast<int>(c.ints[5]);
  const int64_t chosen = indices.size(1);
  Step step;
  step.work.bytes = 8.0 * static_cast<double>(x.elements());
  step.work.operations =
      6.0 * static_cast<double>(tokens * chosen) * static_cast<double>(hidden) * static_cast<double>(e.inner);
  const double expert_bytes =
      static_cast<double>(c.operands[3].elements() + c.operands[4].elements()) / static_cast<double>(e.count);
  step.more = [=] {  // each chosen expert is read once
    std::vector<bool> seen(static_cast<size_t>(e.count), false);
    double bytes = 0;
    for (int64_t i = 0; i < tokens * chosen; ++i) {
      const int64_t expert = indices.data<const int64_t>()[i];
      if (expert < 0 || expert >= e.count || seen[static_cast<size_t>(expert)]) continue;
      seen[static_cast<size_t>(expert)] = true;
      bytes += expert_bytes;
    }
    return Work{bytes, 0};
  };
  step.run = [=] {
    const runtime::Pool::Limit limit(threads);
    kernels::Experts now = e;
    now.gate_up_bias = up_bias.data<const float>();
    now.down_bias = down_bias.data<const float>();
    kernels::experts(now, x.data<const float>(), indices.data<const int64_t>(), weights.data<const float>(),
                     tokens, chosen, y.data<float>());
  };
  return step;
}

constexpr OpEntry kOps[] = {
    {"router", "iIoo", 6, 1, make_router},
    {"experts", "iiiiiIIo", 6, 0, make_experts},
};

}  // namespace

OpTable expert_ops() {
  return {kOps, static_cast<int>(std::size(kOps))};
}

}  // namespace ktc::program
