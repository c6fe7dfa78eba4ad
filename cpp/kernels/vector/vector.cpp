// Splits the row kernels over the pool.
#include "kernels/vector/vector.hpp"

#include <algorithm>

#include "isa/isa.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

#ifdef KTC_X86
constexpr isa::Dispatch<const VectorKernels> kKernels{&vector_kernels_generic, &vector_kernels_avx2,
                                                      &vector_kernels_avx512, nullptr};
#else
constexpr isa::Dispatch<const VectorKernels> kKernels{&vector_kernels_generic};
#endif

// Elements worth giving to another thread: about 3 us of a core.
constexpr int64_t kPiece = 16 << 10;

int64_t grain(int64_t n) {
  return std::max<int64_t>(1, kPiece / std::max<int64_t>(n, 1));
}

}  // namespace

const VectorKernels& vector_kernels() {
  return *kKernels.pick();
}

void rms_norm(const Rows& x, const Rows& residual, int64_t outer_count, int64_t inner_count, int64_t n,
              const float* weight, float eps, float offset, float* y, float* sum) {
  const auto kernel = kKernels.pick()->rms_norm;
  runtime::Pool::instance().parallel_for(
      outer_count * inner_count, grain(n), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const float* added = residual.data ? residual.row(i, inner_count) : nullptr;
          kernel(x.row(i, inner_count), added, weight, eps, offset, n, y + i * n,
                 sum ? sum + i * n : nullptr);
        }
      });
}

void layer_norm(const Rows& x, int64_t outer_count, int64_t inner_count, int64_t n, const float* weight,
                const float* bias, float eps, float* y) {
  const auto kernel = kKernels.pick()->layer_norm;
  runtime::Pool::instance().parallel_for(outer_count * inner_count, grain(n),
                                         [&](int64_t begin, int64_t end, int) {
                                           for (int64_t i = begin; i < end; ++i)
                                             kernel(x.row(i, inner_count), weight, bias, eps, n, y + i * n);
                                         });
}

void elementwise(Elementwise function, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                 int64_t rows, int64_t n, float* y) {
  const auto kernel = kKernels.pick()->elementwise[static_cast<int>(function)];
  runtime::Pool::instance().parallel_for(rows, grain(n), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      kernel(a + i * a_stride, b ? b + i * b_stride : nullptr, n, y + i * n);
  });
}

void rope(const Rows& x, int64_t heads, int64_t tokens, int64_t depth, const float* cos, const float* sin,
          int64_t cos_stride, int64_t width, bool interleaved, float* y, int64_t y_outer, int64_t y_inner) {
  const auto kernel = kKernels.pick()->rope;
  runtime::Pool::instance().parallel_for(heads * tokens, grain(depth), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / tokens, token = i % tokens;
      kernel(x.data + head * x.outer + token * x.inner, cos + token * cos_stride, sin + token * cos_stride,
             width, depth, interleaved, y + head * y_outer + token * y_inner);
    }
  });
}

}  // namespace ktc::kernels
