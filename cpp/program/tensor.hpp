// Operands: views of buffers, as a program describes them and as a step sees them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "program/affine.hpp"

namespace ktc::program {

enum class Type : int { f32, f16, bf16, i64, i32, u8, boolean };
inline constexpr int kTypes = 7;

inline int64_t item_bytes(Type type) {
  constexpr int64_t kBytes[kTypes] = {4, 2, 2, 8, 4, 1, 1};
  return kBytes[static_cast<int>(type)];
}
const char* type_name(Type type);

// A view of a buffer: offset and strides count elements.
struct View {
  int buffer;
  Type type;
  Affine offset;
  std::vector<Affine> shape, strides;
};

// A view in one step. `base` points to where the buffer's address stands while the step runs; 0 elements
// never have an address.
struct Tensor {
  Type type = Type::f32;
  std::vector<int64_t> shape, strides;
  uint8_t* const* base = nullptr;  // null: the operand is left out
  int64_t offset = 0;              // bytes
  int view = -1;                   // the program's number for it

  explicit operator bool() const { return base != nullptr; }
  template <typename T>
  T* data() const {
    return base ? reinterpret_cast<T*>(*base + offset) : nullptr;
  }

  int rank() const { return static_cast<int>(shape.size()); }
  int64_t size(int dim) const { return shape[static_cast<size_t>(dim < 0 ? dim + rank() : dim)]; }
  int64_t stride(int dim) const { return strides[static_cast<size_t>(dim < 0 ? dim + rank() : dim)]; }
  int64_t elements() const;
  bool contiguous() const;
  // "float32[1, 4, 64]", with strides where they are not those of a contiguous tensor.
  std::string describe() const;
};

// The rows of a tensor, runs of its last dimension, in two nested strided dimensions (kernels::Rows).
struct RowGrid {
  int64_t outer, inner, outer_count, inner_count, n;
  int64_t count() const { return outer_count * inner_count; }
};

// Throws std::invalid_argument naming `operand` when the rows do not lie so.
RowGrid row_grid(const Tensor& x, const char* operand);

// Rows at one stride: throws std::invalid_argument when there is none.
int64_t row_stride(const Tensor& x, const char* operand);

// Throws std::invalid_argument "`operand` must be WANTED, not ...".
[[noreturn]] void refuse(const char* operand, const Tensor& x, const std::string& wanted);
void require(bool fits, const char* operand, const Tensor& x, const char* wanted);

}  // namespace ktc::program
