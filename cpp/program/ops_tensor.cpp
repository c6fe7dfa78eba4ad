// What torch functions leave between kernels: copies and casts, arithmetic with broadcasting, selection of
// rows. Results are those of torch, bit by bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "formats/float16.hpp"
#include "program/op_tables.hpp"
#include "runtime/pool.hpp"

namespace ktc::program {
namespace {

using Calls = std::vector<Call>;

// Nested loops over a result's elements, with a stride for each of up to three tensors. Sizes of 1 are left
// out and neighbours that continue each other are one, so that most calls are a single long run.
struct Loops {
  static constexpr int kTensors = 3;
  struct Dim {
    int64_t size;
    int64_t strides[kTensors];
  };
  std::vector<Dim> outer;
  Dim inner{1, {0, 0, 0}};
  int64_t rows = 1;

  // tensors[0] is the result; the others are broadcast to its shape. Throws std::invalid_argument when they
  // cannot.
  explicit Loops(const std::vector<const Tensor*>& tensors) {
    const Tensor& y = *tensors[0];
    std::vector<Dim> dims;  // from the inside out
    for (int dim = y.rank(); dim-- > 0;) {
      Dim d{y.size(dim), {y.stride(dim), 0, 0}};
      for (size_t i = 1; i < tensors.size(); ++i) {
        const Tensor& x = *tensors[i];
        const int at = dim - (y.rank() - x.rank());
        if (at < 0 || x.size(at) == 1) continue;
        require(x.size(at) == d.size, "operand", x, ("broadcast to " + y.describe()).c_str());
        d.strides[i] = x.stride(at);
      }
      for (size_t i = 1; i < tensors.size(); ++i)
        require(tensors[i]->rank() <= y.rank(), "operand", *tensors[i],
                "of no more dimensions than the result");
      if (d.size == 1) continue;
      if (!dims.empty()) {
        Dim& last = dims.back();
        bool continues = true;
        for (int i = 0; i < kTensors; ++i) continues &= d.strides[i] == last.strides[i] * last.size;
        if (continues) {
          last.size *= d.size;
          continue;
        }
      }
      dims.push_back(d);
    }
    if (dims.empty()) return;
    inner = dims[0];
    outer.assign(dims.rbegin(), dims.rend() - 1);
    for (const Dim& d : outer) rows *= d.size;
  }

  // body(offsets of the row's first elements) for every row, on the pool where it pays.
  template <typename Body>
  void run(Body&& body) const {
    if (inner.size == 0) return;
    const int64_t grain = std::max<int64_t>(1, (16 << 10) / inner.size);
    runtime::Pool::instance().parallel_for(rows, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        int64_t at[kTensors] = {0, 0, 0}, rest = row;
        for (size_t d = outer.size(); d-- > 0;) {
          const int64_t index = rest % outer[d].size;
          rest /= outer[d].size;
          for (int i = 0; i < kTensors; ++i) at[i] += index * outer[d].strides[i];
        }
        body(at);
      }
    });
  }
};

template <typename T>
struct Number {
  static float get(T value) { return static_cast<float>(value); }
  static T put(float value) { return static_cast<T>(value); }
};
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};
template <>
struct Number<Half> {
  static float get(Half value) { return f16_to_f32(value.bits); }
  static Half put(float value) { return {f32_to_f16(value)}; }
};
template <>
struct Number<Brain> {
  static float get(Brain value) { return bf16_to_f32(value.bits); }
  static Brain put(float value) { return {f32_to_bf16(value)}; }
};

template <typename From, typename To>
void convert(const Loops& loops, const Tensor& x, const Tensor& y) {
  const From* from = x.data<const From>();
  To* to = y.data<To>();
  const auto [n, strides] = loops.inner;
  loops.run([&, n = n, s = strides](const int64_t* at) {
    To* out = to + at[0];
    const From* in = from + at[1];
    if constexpr (std::is_same_v<From, To>) {
      if (s[0] == 1 && s[1] == 1) {
        std::memcpy(out, in, static_cast<size_t>(n) * sizeof(To));
        return;
      }
      for (int64_t i = 0; i < n; ++i) out[i * s[0]] = in[i * s[1]];
    } else {
      for (int64_t i = 0; i < n; ++i) out[i * s[0]] = Number<To>::put(Number<From>::get(in[i * s[1]]));
    }
  });
}

using Convert = void (*)(const Loops&, const Tensor&, const Tensor&);

// Copies between equal types and casts between float types and from int32; null for others.
Convert converter(Type from, Type to) {
  if (from == to) {
    switch (item_bytes(from)) {
      case 1:
        return convert<uint8_t, uint8_t>;
      case 2:
        return convert<uint16_t, uint16_t>;
      case 4:
        return convert<uint32_t, uint32_t>;
      default:
        return convert<uint64_t, uint64_t>;
    }
  }
  if (from == Type::f32)
    return to == Type::f16 ? convert<float, Half> : to == Type::bf16 ? convert<float, Brain> : nullptr;
  if (to != Type::f32) return nullptr;
  switch (from) {
    case Type::f16:
      return convert<Half, float>;
    case Type::bf16:
      return convert<Brain, float>;
    case Type::i32:
      return convert<int32_t, float>;
    case Type::i64:
      return convert<int64_t, float>;
    default:
      return nullptr;
  }
}

Work moved(const Tensor& y, int tensors) {
  const double elements = static_cast<double>(y.elements());
  return {elements * static_cast<double>(item_bytes(y.type)) * tensors, elements};
}

// copy: x, y of the same shape up to broadcasting, of any strides; casts where `converter` can.
Step make_copy(const Calls& calls) {
  const Tensor x = calls[0].operands[0], y = calls[0].operands[1];
  const Convert run = converter(x.type, y.type);
  require(run != nullptr, "x", x, (std::string("castable to ") + type_name(y.type)).c_str());
  const Loops loops({&y, &x});
  return {[=] { run(loops, x, y); }, moved(y, 2)};
}

enum Arithmetic : int64_t { kAdd, kSubtract, kMultiply, kDivide, kArithmetic };

template <int64_t kFunction>
float apply(float a, float b) {
  if constexpr (kFunction == kAdd) return a + b;
  if constexpr (kFunction == kSubtract) return a - b;
  if constexpr (kFunction == kMultiply) return a * b;
  if constexpr (kFunction == kDivide) return a / b;
}

template <int64_t kFunction>
void arithmetic(const Loops& loops, const float* a, const float* b, float* y) {
  const auto [n, strides] = loops.inner;
  loops.run([&, n = n, s = strides](const int64_t* at) {
    float* out = y + at[0];
    const float *left = a + at[1], *right = b + at[2];
    if (s[0] == 1 && s[1] == 1 && s[2] == 1) {
      for (int64_t i = 0; i < n; ++i) out[i] = apply<kFunction>(left[i], right[i]);
    } else if (s[0] == 1 && s[1] == 1 && s[2] == 0) {
      const float value = *right;
      for (int64_t i = 0; i < n; ++i) out[i] = apply<kFunction>(left[i], value);
    } else {
      for (int64_t i = 0; i < n; ++i) out[i * s[0]] = apply<kFunction>(left[i * s[1]], right[i * s[2]]);
    }
  });
}

using Arithmetics = void (*)(const Loops&, const float*, const float*, float*);
constexpr Arithmetics kArithmetics[kArithmetic] = {arithmetic<kAdd>, arithmetic<kSubtract>,
                                                   arithmetic<kMultiply>, arithmetic<kDivide>};

Arithmetics arithmetic_of(int64_t function) {
  if (function < 0 || function >= kArithmetic) throw std::invalid_argument("no such function");
  return kArithmetics[function];
}

// arithmetic: a, b, y float32, broadcast to y; ints: function (add, subtract, multiply, divide).
Step make_arithmetic(const Calls& calls) {
  const Tensor a = calls[0].operands[0], b = calls[0].operands[1], y = calls[0].operands[2];
  for (const Tensor* x : {&a, &b, &y}) require(x->type == Type::f32, "operand", *x, "float32");
  const Arithmetics run = arithmetic_of(calls[0].ints[0]);
  const Loops loops({&y, &a, &b});
  return {[=] { run(loops, a.data<const float>(), b.data<const float>(), y.data<float>()); }, moved(y, 3)};
}

// scalar: x, y float32; y = f(x, value), or f(value, x) when the second of ints (function, reversed) is 1;
// floats: value.
Step make_scalar(const Calls& calls) {
  const Tensor x = calls[0].operands[0], y = calls[0].operands[1];
  for (const Tensor* t : {&x, &y}) require(t->type == Type::f32, "operand", *t, "float32");
  const Arithmetics run = arithmetic_of(calls[0].ints[0]);
  const bool reversed = calls[0].ints[1] != 0;
  Tensor one;
  one.type = Type::f32;
  const Loops loops(reversed ? std::vector<const Tensor*>{&y, &one, &x}
                             : std::vector<const Tensor*>{&y, &x, &one});
  const float value = static_cast<float>(calls[0].floats[0]);
  return {[=] {
            const float *a = reversed ? &value : x.data<const float>(),
                        *b = reversed ? x.data<const float>() : &value;
            run(loops, a, b, y.data<float>());
          },
          moved(y, 2)};
}

// index_select: x, index int64[K], y; y[.., k, ..] = x[.., index[k], ..] along a dimension; ints: dimension.
Step make_index_select(const Calls& calls) {
  const Tensor x = calls[0].operands[0], index = calls[0].operands[1], y = calls[0].operands[2];
  const int64_t dim = calls[0].ints[0];
  if (dim < 0 || dim >= x.rank()) throw std::invalid_argument("no such dimension");
  require(index.type == Type::i64 && index.rank() == 1 && index.contiguous(), "index", index,
          "contiguous int64[K]");
  const int64_t count = index.elements(), limit = x.size(static_cast<int>(dim));
  Tensor from = x, to = y;  // one index
  from.shape[static_cast<size_t>(dim)] = 1;
  std::vector<int64_t> wanted = from.shape;
  wanted[static_cast<size_t>(dim)] = count;
  require(y.type == x.type && y.shape == wanted, "y", y, "of x's type and of the index's size");
  to.shape[static_cast<size_t>(dim)] = 1;
  const Loops loops({&to, &from});
  const Convert run = converter(x.type, x.type);
  const int64_t item = item_bytes(x.type);
  const int64_t from_step = x.stride(static_cast<int>(dim)) * item,
                to_step = y.stride(static_cast<int>(dim)) * item;
  return {[=] {
            const int64_t* indices = index.data<const int64_t>();
            for (int64_t k = 0; k < count; ++k) {
              if (indices[k] < 0 || indices[k] >= limit) {
                throw std::out_of_range("index " + std::to_string(indices[k]) + " at place " +
                                        std::to_string(k) + " is outside " + std::to_string(limit));
              }
            }
            for (int64_t k = 0; k < count; ++k) {
              Tensor source = from, target = to;
              source.offset += indices[k] * from_step;
              target.offset += k * to_step;
              run(loops, source, target);
            }
          },
          moved(y, 2)};
}

// sigmoid: x, y float32, correctly rounded (torch's own is within one unit in the last place).
Step make_sigmoid(const Calls& calls) {
  const Tensor x = calls[0].operands[0], y = calls[0].operands[1];
  for (const Tensor* t : {&x, &y}) require(t->type == Type::f32, "operand", *t, "float32");
  const Loops loops({&y, &x});
  return {[=] {
            const float* in = x.data<const float>();
            float* out = y.data<float>();
            loops.run([&](const int64_t* at) {
              for (int64_t i = 0; i < loops.inner.size; ++i) {
                const double value = in[at[1] + i * loops.inner.strides[1]];
                out[at[0] + i * loops.inner.strides[0]] = static_cast<float>(1.0 / (1.0 + std::exp(-value)));
              }
            });
          },
          moved(y, 2)};
}

constexpr OpEntry kOps[] = {
    {"copy", "io", 0, 0, make_copy},
    {"arithmetic", "iio", 1, 0, make_arithmetic},
    {"scalar", "io", 2, 1, make_scalar},
    {"sigmoid", "io", 0, 0, make_sigmoid},
    {"index_select", "iio", 1, 0, make_index_select},
};

}  // namespace

OpTable tensor_ops() {
  return {kOps, static_cast<int>(std::size(kOps))};
}

}  // namespace ktc::program
