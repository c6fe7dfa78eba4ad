// Questions about operands, see tensor.hpp.
#include "program/tensor.hpp"

#include <stdexcept>
#include <utility>

namespace ktc::program {

const char* type_name(Type type) {
  constexpr const char* kNames[kTypes] = {"float32", "float16", "bfloat16", "int64",
                                          "int32",   "uint8",   "bool"};
  return kNames[static_cast<int>(type)];
}

int64_t Tensor::elements() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

bool Tensor::contiguous() const {
  int64_t step = 1;
  for (int dim = rank(); dim-- > 0;) {
    if (size(dim) != 1 && stride(dim) != step) return false;
    step *= size(dim);
  }
  return true;
}

std::string Tensor::describe() const {
  const auto list = [](const std::vector<int64_t>& numbers) {
    std::string text = "[";
    for (size_t i = 0; i < numbers.size(); ++i) text += (i ? ", " : "") + std::to_string(numbers[i]);
    return text + "]";
  };
  const std::string text = type_name(type) + list(shape);
  return contiguous() ? text : text + " with strides " + list(strides);
}

void refuse(const char* operand, const Tensor& x, const std::string& wanted) {
  throw std::invalid_argument("`" + std::string(operand) + "` must be " + wanted + ", not " +
                              (x ? x.describe() : "left out"));
}

void require(bool fits, const char* operand, const Tensor& x, const char* wanted) {
  if (!fits) refuse(operand, x, wanted);
}

RowGrid row_grid(const Tensor& x, const char* operand) {
  if (x.rank() == 0 || (x.size(-1) != 1 && x.stride(-1) != 1)) {
    refuse(operand, x, "of contiguous rows");
  }
  // Dimensions from the inside out; neighbours that continue each other count as one.
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int dim = x.rank() - 1; dim-- > 0;) {
    if (x.size(dim) == 1) continue;
    if (!dims.empty() && x.stride(dim) == dims.back().first * dims.back().second) {
      dims.back().first *= x.size(dim);
    } else {
      dims.emplace_back(x.size(dim), x.stride(dim));
    }
  }
  if (dims.size() > 2) refuse(operand, x, "of rows in at most two strided dimensions");
  while (dims.size() < 2) dims.emplace_back(1, 0);
  return {dims[1].second, dims[0].second, dims[1].first, dims[0].first, x.size(-1)};
}

int64_t row_stride(const Tensor& x, const char* operand) {
  const RowGrid grid = row_grid(x, operand);
  if (grid.outer_count > 1) refuse(operand, x, "of rows at one stride");
  return grid.inner_count > 1 ? grid.inner : grid.n;
}

}  // namespace ktc::program
