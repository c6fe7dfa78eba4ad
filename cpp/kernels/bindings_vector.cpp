// Python's view of norms, rotary embedding, elementwise functions and attention; see bindings.cpp.
#include <stdexcept>
#include <string>

#include "kernels/address.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/bindings_parts.hpp"
#include "kernels/rotary.hpp"
#include "kernels/vector/vector.hpp"

namespace nb = nanobind;

namespace ktc::kernels {
namespace {

using Release = nb::call_guard<nb::gil_scoped_release>;

void check_sizes(int64_t a, int64_t b) {
  if (a < 0 || b < 0) throw std::invalid_argument("a size is negative");
}

Rows rows(uint64_t address, int64_t outer, int64_t inner) {
  return {pointer<const float>(address), outer, inner};
}

CacheType cache_type(int number) {
  if (number < 0 || number >= kCacheTypes)
    throw std::invalid_argument("no such cache type: " + std::to_string(number));
  return static_cast<CacheType>(number);
}

}  // namespace

void bind_vector(nb::module_& m) {
  m.def(
      "rms_norm",
      [](uint64_t x, int64_t outer, int64_t inner, uint64_t residual, int64_t residual_outer,
         int64_t residual_inner, int64_t outer_count, int64_t inner_count, int64_t n, uint64_t weight,
         float eps, float offset, uint64_t y, uint64_t sum) {
        check_sizes(outer_count, inner_count);
        check_sizes(n, n);
        rms_norm(rows(x, outer, inner), rows(residual, residual_outer, residual_inner), outer_count,
                 inner_count, n, pointer<const float>(weight), eps, offset, pointer<float>(y),
                 pointer<float>(sum));
      },
      nb::arg("x"), nb::arg("outer"), nb::arg("inner"), nb::arg("residual"), nb::arg("residual_outer"),
      nb::arg("residual_inner"), nb::arg("outer_count"), nb::arg("inner_count"), nb::arg("n"),
      nb::arg("weight"), nb::arg("eps"), nb::arg("offset"), nb::arg("y"), nb::arg("sum"), Release(),
      "y = rms_norm(x), or of x + residual (0 for none), which goes to `sum`; rows in two strided "
      "dimensions.");
  m.def(
      "layer_norm",
      [](uint64_t x, int64_t outer, int64_t inner, int64_t outer_count, int64_t inner_count, int64_t n,
         uint64_t weight, uint64_t bias, float eps, uint64_t y) {
        check_sizes(outer_count, inner_count);
        check_sizes(n, n);
        layer_norm(rows(x, outer, inner), outer_count, inner_count, n, pointer<const float>(weight),
                   pointer<const float>(bias), eps, pointer<float>(y));
      },
      nb::arg("x"), nb::arg("outer"), nb::arg("inner"), nb::arg("outer_count"), nb::arg("inner_count"),
      nb::arg("n"), nb::arg("weight"), nb::arg("bias"), nb::arg("eps"), nb::arg("y"), Release(),
      "y = layer_norm(x); bias may be 0.");
  m.def(
      "elementwise",
      [](int function, uint64_t a, int64_t a_stride, uint64_t b, int64_t b_stride, int64_t count, int64_t n,
         uint64_t y) {
        if (function < 0 || function >= kElementwise)
          throw std::invalid_argument("no such elementwise function");
        check_sizes(count, n);
        elementwise(static_cast<Elementwise>(function), pointer<const float>(a), a_stride,
                    pointer<const float>(b), b_stride, count, n, pointer<float>(y));
      },
      nb::arg("function"), nb::arg("a"), nb::arg("a_stride"), nb::arg("b"), nb::arg("b_stride"),
      nb::arg("rows"), nb::arg("n"), nb::arg("y"), Release(),
      "y[rows, n] = f(a, b): 0 add, 1 mul, 2 silu, 3 gelu, 4 gelu by tanh, 5 silu(a) b, 6 gelu(a) b, 7 gelu "
      "by tanh.");
  m.def(
      "rotary",
      [](uint64_t positions, int64_t tokens, uint64_t frequencies, int64_t half, float scaling, uint64_t cos,
         uint64_t sin) {
        check_sizes(tokens, half);
        rotary(pointer<const int64_t>(positions), tokens, pointer<const float>(frequencies), half, scaling,
               pointer<float>(cos), pointer<float>(sin));
      },
      nb::arg("positions"), nb::arg("tokens"), nb::arg("frequencies"), nb::arg("half"), nb::arg("scaling"),
      nb::arg("cos"), nb::arg("sin"), Release(),
      "cos and sin [tokens, 2 half] of int64 positions times frequencies[half].");
  m.def(
      "rope",
      [](uint64_t x, int64_t head_stride, int64_t token_stride, int64_t heads, int64_t tokens, int64_t depth,
         uint64_t cos, uint64_t sin, int64_t cos_stride, int64_t width, bool interleaved, uint64_t y,
         int64_t y_head, int64_t y_token) {
        check_sizes(heads, tokens);
        if (width < 0 || width % 2 || width > depth)
          throw std::invalid_argument("rope: width must be even, at most depth");
        rope(rows(x, head_stride, token_stride), heads, tokens, depth, pointer<const float>(cos),
             pointer<const float>(sin), cos_stride, width, interleaved, pointer<float>(y), y_head, y_token);
      },
      nb::arg("x"), nb::arg("head_stride"), nb::arg("token_stride"), nb::arg("heads"), nb::arg("tokens"),
      nb::arg("depth"), nb::arg("cos"), nb::arg("sin"), nb::arg("cos_stride"), nb::arg("width"),
      nb::arg("interleaved"), nb::arg("y"), nb::arg("y_head"), nb::arg("y_token"), Release(),
      "y = x[heads, tokens, depth] rotated.");
}

void bind_attention(nb::module_& m) {
  m.def(
      "attention",
      [](uint64_t q, int64_t q_head, int64_t q_token, uint64_t k, int64_t k_head, int64_t k_token, uint64_t v,
         int64_t v_head, int64_t v_token, uint64_t keys, int key_type, uint64_t values, int value_type,
         int64_t heads, int64_t kv_heads, int64_t tokens, int64_t depth, int64_t value_depth, int64_t blocks,
         int64_t block_size, uint64_t seq_starts, uint64_t context_lens, uint64_t block_tables,
         int64_t sequences, int64_t table_columns, uint64_t slots, float scale, int64_t window, float softcap,
         uint64_t sinks, uint64_t out) {
        check_sizes(tokens, sequences);
        check_sizes(table_columns, blocks);
        Attention a{};
        a.q = {pointer<const float>(q), q_head, q_token};
        a.k = {pointer<const float>(k), k_head, k_token};
        a.v = {pointer<const float>(v), v_head, v_token};
        a.keys = {pointer<uint8_t>(keys), cache_type(key_type)};
        a.values = {pointer<uint8_t>(values), cache_type(value_type)};
        a.heads = heads;
        a.kv_heads = kv_heads;
        a.tokens = tokens;
        a.depth = depth;
        a.value_depth = value_depth;
        a.blocks = blocks;
        a.block_size = block_size;
        a.seq_starts = pointer<const int32_t>(seq_starts);
        a.context_lens = pointer<const int32_t>(context_lens);
        a.block_tables = pointer<const int32_t>(block_tables);
        a.sequences = sequences;
        a.table_columns = table_columns;
        a.slots = pointer<const int64_t>(slots);
        a.scale = scale;
        a.window = window;
        a.softcap = softcap;
        a.sinks = pointer<const float>(sinks);
        a.out = pointer<float>(out);
        check_attention(a);
        attention(a);
      },
      nb::arg("q"), nb::arg("q_head"), nb::arg("q_token"), nb::arg("k"), nb::arg("k_head"),
      nb::arg("k_token"), nb::arg("v"), nb::arg("v_head"), nb::arg("v_token"), nb::arg("keys"),
      nb::arg("key_type"), nb::arg("values"), nb::arg("value_type"), nb::arg("heads"), nb::arg("kv_heads"),
      nb::arg("tokens"), nb::arg("depth"), nb::arg("value_depth"), nb::arg("blocks"), nb::arg("block_size"),
      nb::arg("seq_starts"), nb::arg("context_lens"), nb::arg("block_tables"), nb::arg("sequences"),
      nb::arg("table_columns"), nb::arg("slots"), nb::arg("scale"), nb::arg("window"), nb::arg("softcap"),
      nb::arg("sinks"), nb::arg("out"), Release(),
      "kt.attention: writes k and v into the caches (types 0 float32, 1 float16, 2 bfloat16, 3 q8_0), then "
      "attends.\n\n"
      "Raises:\n    ValueError: sequences, blocks or slots outside the caches.");
}

}  // namespace ktc::kernels
