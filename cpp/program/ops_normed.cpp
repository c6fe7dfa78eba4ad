// Norms whose results are products' activations alone: rows are quantised while they are in the caches.
#include <optional>

#include "kernels/linear/linear.hpp"
#include "kernels/vector/vector.hpp"
#include "program/op_tables.hpp"

namespace ktc::program {
namespace {

// A norm of a call, with or without an addition before it, by rows.
struct Norm {
  Tensor x, residual, weight, sum;
  RowGrid grid, added;
  float eps, offset;

  // Of a call that its op's entry has checked.
  explicit Norm(const Call& call, bool adds)
      : x(call.operands[0]),
        residual(adds ? call.operands[1] : Tensor{}),
        weight(call.operands[adds ? 2 : 1]),
        sum(adds ? call.operands[4] : Tensor{}),
        grid(row_grid(x, "x")),
        added(adds ? row_grid(residual, "residual") : RowGrid{}),
        eps(static_cast<float>(call.floats[0])),
        offset(static_cast<float>(call.floats[1])) {}
};

// What it is while a step runs.
struct NormRows {
  decltype(kernels::VectorKernels::rms_norm) kernel;
  kernels::Rows x, residual;
  int64_t x_inner, residual_inner, n;
  const float* weight;
  float eps, offset;
  float* sum;

  explicit NormRows(const Norm& norm)
      : kernel(kernels::vector_kernels().rms_norm),
        x{norm.x.data<const float>(), norm.grid.outer, norm.grid.inner},
        residual{norm.residual.data<const float>(), norm.added.outer, norm.added.inner},
        x_inner(norm.grid.inner_count),
        residual_inner(norm.added.inner_count),
        n(norm.grid.n),
        weight(norm.weight.data<const float>()),
        eps(norm.eps),
        offset(norm.offset),
        sum(norm.sum.data<float>()) {}

  static void make(const void* context, int64_t token, float* row) {
    const NormRows& r = *static_cast<const NormRows*>(context);
    const float* added = r.residual.data ? r.residual.row(token, r.residual_inner) : nullptr;
    r.kernel(r.x.row(token, r.x_inner), added, r.weight, r.eps, r.offset, r.n, row,
             r.sum ? r.sum + token * r.n : nullptr);
  }
};

// Fewer tokens leave the norm's result in the caches.
constexpr int64_t kNormedTokens = 32;

// calls: a norm, and then one product or those of a gated block.
template <bool kAdds>
std::optional<Step> make_normed(const std::vector<Call>& calls) {
  constexpr size_t result = kAdds ? 3 : 2;
  Call alone = calls[0];
  std::vector<Call> products(calls.begin() + 1, calls.end());
  const Tensor &made = alone.operands[result], &read = products[0].operands[0];
  const int64_t format = products[0].ints[0];
  if (format < 0 || format >= kFormats || kernels::is_float(static_cast<Format>(format)) ||
      made.base != read.base || made.offset != read.offset || made.elements() != read.elements() ||
      !read.contiguous() || made.rank() == 0 || made.size(-1) != read.size(-1) ||
      made.elements() < kNormedTokens * made.size(-1)) {
    return std::nullopt;
  }
  // Levels that take activations as a whole have the norm write them here.
  const Tensor spare = alone.temporary(made.elements() * item_bytes(Type::f32));
  for (Tensor* to : {&alone.operands[result], &products[0].operands[0]}) {
    to->base = spare.base;
    to->offset = 0;
  }
  const Step norm = find_op(kAdds ? "add_rms_norm" : "rms_norm")->make({alone});
  const Norm rows(alone, kAdds);
  const int64_t columns = rows.grid.n, tokens = made.elements() / columns;
  const auto fill = [=, run = norm.run](Format format, uint8_t* records) {
    const NormRows now(rows);
    if (kernels::quantize_made(format, {NormRows::make, &now}, tokens, columns, records)) return;
    run();
    kernels::quantize_activations(format, spare.data<const float>(), columns, tokens, columns, records);
  };
  std::optional<Step> step = products.size() > 1 ? gated_step(products, fill) : linear_step(products, fill);
  if (step) {
    step->work.bytes += norm.work.bytes;
    step->work.operations += norm.work.operations;
  }
  return step;
}

const Chain kNormedAlone{{"linear"}, make_normed<false>, 1};
const Chain kAddNormedAlone{{"linear"}, make_normed<true>, 1, 4};

}  // namespace

const Chain kNormedLinear{{"linear", "elementwise", "linear"}, make_normed<false>, 1, -1, &kNormedAlone};
const Chain kAddNormedLinear{{"linear", "elementwise", "linear"}, make_normed<true>, 1, 4, &kAddNormedAlone};

}  // namespace ktc::program
