// Attention over the paged cache: with a key head for several query heads, and latent.
#include <algorithm>
#include <stdexcept>

#include "kernels/attention/attention.hpp"
#include "kernels/latent/latent.hpp"
#include "program/op_tables.hpp"

namespace ktc::program {
namespace {

kernels::CacheType cache_type(const char* name, const Tensor& cache) {
  switch (cache.type) {
    case Type::f32:
      return kernels::CacheType::f32;
    case Type::f16:
      return kernels::CacheType::f16;
    case Type::bf16:
      return kernels::CacheType::bf16;
    case Type::u8:
      return kernels::CacheType::q8_0;
    default:
      refuse(name, cache, "float32, float16, bfloat16 or q8_0 as uint8");
  }
}

kernels::HeadRows heads(const Tensor& x) {
  return {x.data<const float>(), x.stride(1), x.stride(2)};
}

void require_heads(const char* name, const Tensor& x, int64_t tokens) {
  require(x.type == Type::f32 && x.rank() == 4 && x.size(0) == 1 && x.size(2) == tokens && x.stride(3) == 1,
          name, x, ("float32[1, heads, " + std::to_string(tokens) + ", depth] of contiguous heads").c_str());
}

// A cache [blocks, kv heads, block size, depth], and where a step's sequences lie in it.
struct Paged {
  Tensor keys, values, starts, lens, tables, slots;
  int64_t blocks, block_size, sequences, table_columns;

  // Operands from `first` on: key cache, value cache, seq_starts, context_lens, block_tables, slots.
  Paged(const std::vector<Tensor>& o, size_t first, int64_t heads, int64_t depth, int64_t value_depth,
        int64_t tokens)
      : keys(o[first]),
        values(o[first + 1]),
        starts(o[first + 2]),
        lens(o[first + 3]),
        tables(o[first + 4]),
        slots(o[first + 5]) {
    for (const Tensor* cache : {&keys, &values}) {
      const bool key = cache == &keys;
      const char* name = key ? "key_cache" : "value_cache";
      const kernels::CacheType type = cache_type(name, *cache);
      const int64_t row = kernels::slab_bytes(type, 1, key ? depth : value_depth);
      require(cache->rank() == 4 && cache->contiguous() && cache->size(1) == heads &&
                  cache->size(3) * item_bytes(cache->type) == row,
              name, *cache, "contiguous [blocks, kv heads, block size, depth]");
    }
    blocks = keys.size(0);
    block_size = keys.size(2);
    require(values.size(0) == blocks && values.size(2) == block_size, "value_cache", values,
            "of the blocks of key_cache");
    sequences = lens.elements();
    require(lens.type == Type::i32 && lens.contiguous(), "context_lens", lens, "contiguous int32");
    require(starts.type == Type::i32 && starts.contiguous() && starts.elements() == sequences + 1,
            "seq_starts", starts, "contiguous int32[sequences + 1]");
    require(
        tables.type == Type::i32 && tables.contiguous() && tables.rank() == 2 && tables.size(0) == sequences,
        "block_tables", tables, "contiguous int32[sequences, n]");
    table_columns = tables.size(1);
    require(slots.type == Type::i64 && slots.contiguous() && slots.elements() == tokens, "slots", slots,
            "contiguous int64[tokens]");
  }

  // What kernels::Attention and kernels::LatentAttention have in common.
  template <typename Call>
  void fill(Call& call) const {
    call.blocks = blocks;
    call.block_size = block_size;
    call.seq_starts = starts.data<const int32_t>();
    call.context_lens = lens.data<const int32_t>();
    call.block_tables = tables.data<const int32_t>();
    call.sequences = sequences;
    call.table_columns = table_columns;
    call.slots = slots.data<const int64_t>();
  }

  // What a step does, for the counters: calls visit(new tokens, cached positions in reach, pairs of a query
  // and a position it sees) for every sequence. A window of 0 has no end.
  template <typename Visit>
  void count(int64_t window, const Visit& visit) const {
    for (int64_t i = 0; i < sequences; ++i) {
      const int32_t* start = starts.data<const int32_t>() + i;
      const int64_t fresh = start[1] - start[0], length = lens.data<const int32_t>()[i];
      const int64_t before = length - fresh;
      // The first `whole` of the new tokens see everything before them.
      const int64_t whole = window > 0 ? std::clamp<int64_t>(window - before, 0, fresh) : fresh;
      const int64_t reach = window > 0 ? std::min(length, window + fresh - 1) : length;
      visit(static_cast<double>(fresh), static_cast<double>(reach),
            static_cast<double>(whole * before + whole * (whole + 1) / 2 + (fresh - whole) * window));
    }
  }
};

// attention: q[1, H, T, D], k, v, key_cache, value_cache, seq_starts, context_lens, block_tables, slots,
// sinks[H] or none, out[1, T, H, Dv] contiguous; ints: window; floats: scale, softcap.
struct AttentionStep {
  Step step;                                 // what it costs
  std::function<kernels::Attention()> call;  // with the addresses of a run
};

AttentionStep attention_step(const Call& made) {
  const std::vector<Tensor>& o = made.operands;
  const Tensor &q = o[0], &k = o[1], &v = o[2], &sinks = o[9], &out = o[10];
  require(q.rank() == 4, "q", q, "float32[1, heads, tokens, depth]");
  kernels::Attention a{};
  a.tokens = q.size(2);
  require_heads("q", q, a.tokens);
  require_heads("k", k, a.tokens);
  require_heads("v", v, a.tokens);
  a.heads = q.size(1);
  a.kv_heads = v.size(1);
  a.depth = q.size(3);
  a.value_depth = v.size(3);
  require(k.size(1) == a.kv_heads && k.size(3) == a.depth, "k", k, "of q's depth and v's heads");
  const Paged paged(o, 3, a.kv_heads, a.depth, a.value_depth, a.tokens);
  a.keys.type = cache_type("key_cache", paged.keys);
  a.values.type = cache_type("value_cache", paged.values);
  if (sinks) {
    require(sinks.type == Type::f32 && sinks.contiguous() && sinks.elements() == a.heads, "sinks", sinks,
            "contiguous float32[heads]");
  }
  require(out.type == Type::f32 && out.contiguous() && out.elements() == a.tokens * a.heads * a.value_depth,
          "out", out, "contiguous float32[1, tokens, heads, depth]");
  a.window = made.ints[0];
  a.scale = static_cast<float>(made.floats[0]);
  a.softcap = static_cast<float>(made.floats[1]);
  Work work;
  work.bytes = 4.0 * static_cast<double>(q.elements() + k.elements() + v.elements() + out.elements());
  const double cached_bytes =
      static_cast<double>(a.kv_heads * (kernels::slab_bytes(a.keys.type, 1, a.depth) +
                                        kernels::slab_bytes(a.values.type, 1, a.value_depth)));
  Step step;
  step.work = work;
  const double pair = 2.0 * static_cast<double>(a.heads * (a.depth + a.value_depth));
  step.more = [=, window = a.window] {
    Work more;
    paged.count(window, [&](double, double reach, double pairs) {
      more.bytes += cached_bytes * reach;
      more.operations += pair * pairs;
    });
    return more;
  };
  const auto call = [=] {
    kernels::Attention now = a;
    now.q = heads(q);
    now.k = heads(k);
    now.v = heads(v);
    now.keys.data = paged.keys.data<uint8_t>();
    now.values.data = paged.values.data<uint8_t>();
    paged.fill(now);
    now.sinks = sinks.data<const float>();
    now.out = out.data<float>();
    return now;
  };
  return {step, call};
}

Step make_attention(const std::vector<Call>& calls) {
  AttentionStep made = attention_step(calls[0]);
  made.step.run = [call = made.call] {
    const kernels::Attention now = call();
    kernels::check_attention(now);
    kernels::attention(now);
  };
  return made.step;
}

// Fewer tokens are cut along the context: each part would rotate the same queries.
constexpr int64_t kRotatedTokens = 32;

// rope, attention: queries and keys are rotated where they are rounded, or written to the cache, unless the
// level's kernels want them in memory.
std::optional<Step> make_rotated(const std::vector<Call>& calls) {
  Call rope = calls[0], plain = calls[1], whole = calls[1];
  const Tensor cos = rope.operands[2], sin = rope.operands[3];
  for (size_t i = 0; i < 2; ++i) {
    const Tensor &made = rope.operands[4 + i], &read = plain.operands[i];
    if (made.base != read.base || made.offset != read.offset || made.shape != read.shape ||
        made.strides != read.strides || made.rank() != 4 || made.size(2) < kRotatedTokens) {
      return std::nullopt;
    }
  }
  for (size_t i = 0; i < 2; ++i) {
    whole.operands[i] = rope.operands[i];
    const Tensor& made = rope.operands[4 + i];
    const Tensor spare = rope.temporary(made.elements() * item_bytes(made.type));
    for (Tensor* to : {&rope.operands[4 + i], &plain.operands[i]}) {
      to->base = spare.base;
      to->offset = 0;
    }
  }
  const Step rotate = find_op("rope")->make({rope}), attend = make_attention({plain});
  AttentionStep made = attention_step(whole);
  const kernels::Rotation tables{nullptr, nullptr, cos.size(2), rope.ints[0] != 0};
  made.step.run = [=, call = made.call, rotate = rotate.run, attend = attend.run] {
    kernels::Attention now = call();
    kernels::check_attention(now);
    if (!kernels::attention_rotates(now)) {
      rotate();
      return attend();
    }
    now.rotation = tables;
    now.rotation.cos = cos.data<const float>();
    now.rotation.sin = sin.data<const float>();
    kernels::attention(now);
  };
  return made.step;
}

// mla_expand: q_nope[1, H, T, N], q_rope[1, H, T, R], kv[1, T, H (N + V)], k_rope[1, 1, T, R], and q, k, v,
// contiguous.
Step make_expand(const std::vector<Call>& calls) {
  const std::vector<Tensor>& o = calls[0].operands;
  const Tensor &nope = o[0], &rope = o[1], &kv = o[2], &k_rope = o[3], &q = o[4], &k = o[5], &v = o[6];
  require(nope.rank() == 4, "q_nope", nope, "float32[1, heads, tokens, depth]");
  kernels::LatentExpansion e{};
  e.tokens = nope.size(2);
  require_heads("q_nope", nope, e.tokens);
  require_heads("q_rope", rope, e.tokens);
  require_heads("k_rope", k_rope, e.tokens);
  e.heads = nope.size(1);
  e.nope = nope.size(3);
  e.rope = rope.size(3);
  require(rope.size(1) == e.heads, "q_rope", rope, "of q_nope's heads");
  require(k_rope.size(1) == 1 && k_rope.size(3) == e.rope, "k_rope", k_rope,
          "of one head, as deep as q_rope");
  require(kv.type == Type::f32 && kv.rank() == 3 && kv.size(0) == 1 && kv.size(1) == e.tokens &&
              kv.size(2) % e.heads == 0 && kv.size(2) / e.heads > e.nope && kv.stride(2) == 1,
          "kv", kv, "float32[1, tokens, heads * (N + V)]");
  e.value_depth = kv.size(2) / e.heads - e.nope;
  for (size_t i = 4; i < 7; ++i) {
    const int64_t depth = i < 6 ? e.nope + e.rope : e.value_depth;
    require(o[i].type == Type::f32 && o[i].contiguous() && o[i].elements() == e.heads * e.tokens * depth,
            "a result", o[i], "contiguous float32[1, heads, tokens, depth]");
  }
  const double elements = static_cast<double>(q.elements() + k.elements() + v.elements());
  return {[=] {
            kernels::LatentExpansion now = e;
            now.q_nope = heads(nope);
            now.q_rope = heads(rope);
            now.kv = kv.data<const float>();
            now.kv_token = kv.stride(1);
            now.k_rope = k_rope.data<const float>();
            now.k_rope_token = k_rope.stride(2);
            now.q = q.data<float>();
            now.k = k.data<float>();
            now.v = v.data<float>();
            kernels::latent_expand(now);
          },
          {8 * elements, 0}};
}

kernels::HeadWeights head_weights(const char* name, const Tensor& weight, int64_t format, int64_t count,
                                  int64_t rows, int64_t columns) {
  if (format < 0 || format >= kFormats) throw std::invalid_argument("no such format number");
  const auto kind = static_cast<Format>(format);
  const int64_t bytes = count * kernels::head_bytes(kind, rows, columns);
  const uint8_t* data = weight.data<const uint8_t>();
  require(weight.type == Type::u8 && weight.contiguous() && weight.elements() == bytes && data != nullptr &&
              reinterpret_cast<uintptr_t>(data) % 64 == 0,
          name, weight, "weights packed head by head, at a multiple of 64 bytes");
  return {kind, data};
}

// mla_attention: q_nope[1, H, T, N], q_rope[1, H, T, R], latent[1, T, L], k_rope[1, 1, T, R], w_key, w_value,
// latent cache, rotated cache, seq_starts, context_lens, block_tables, slots, out[1, T, H, V] contiguous;
// ints: formats of w_key and w_value, form (kernels::LatentForm); floats: scale.
Step make_latent_attention(const std::vector<Call>& calls) {
  const std::vector<Tensor>& o = calls[0].operands;
  const Tensor &nope = o[0], &rope = o[1], &latent = o[2], &k_rope = o[3], &out = o[12];
  require(nope.rank() == 4, "q_nope", nope, "float32[1, heads, tokens, depth]");
  kernels::LatentAttention a{};
  a.tokens = nope.size(2);
  require_heads("q_nope", nope, a.tokens);
  require_heads("q_rope", rope, a.tokens);
  require_heads("k_rope", k_rope, a.tokens);
  a.heads = nope.size(1);
  a.nope = nope.size(3);
  a.rope = rope.size(3);
  require(rope.size(1) == a.heads, "q_rope", rope, "of q_nope's heads");
  require(k_rope.size(1) == 1 && k_rope.size(3) == a.rope, "k_rope", k_rope,
          "of one head, as deep as q_rope");
  require(latent.type == Type::f32 && latent.rank() == 3 && latent.size(0) == 1 &&
              latent.size(1) == a.tokens && latent.stride(2) == 1,
          "latent", latent, "float32[1, tokens, L]");
  a.depth = latent.size(2);
  require(out.type == Type::f32 && out.contiguous() && out.rank() == 4 && out.size(1) == a.tokens &&
              out.size(2) == a.heads,
          "out", out, "contiguous float32[1, tokens, heads, V]");
  a.value_depth = out.size(3);
  const Paged paged(o, 6, 1, a.depth, a.rope, a.tokens);
  a.latents.type = cache_type("key_cache", paged.keys);
  a.rotated.type = cache_type("value_cache", paged.values);
  a.w_key = head_weights("w_key", o[4], calls[0].ints[0], a.heads, a.depth, a.nope);
  a.w_value = head_weights("w_value", o[5], calls[0].ints[1], a.heads, a.value_depth, a.depth);
  if (calls[0].ints[2] < 0 || calls[0].ints[2] > 2) throw std::invalid_argument("no such form");
  a.form = static_cast<kernels::LatentForm>(calls[0].ints[2]);
  a.scale = static_cast<float>(calls[0].floats[0]);
  Step step;
  step.work.bytes = static_cast<double>(o[4].elements() + o[5].elements()) +
                    4.0 * static_cast<double>(nope.elements() + rope.elements() + out.elements());
  const double cached_bytes = static_cast<double>(kernels::slab_bytes(a.latents.type, 1, a.depth) +
                                                  kernels::slab_bytes(a.rotated.type, 1, a.rope));
  step.more = [=] {  // of the form that takes fewer operations
    const auto heads = static_cast<double>(2 * a.heads), depth = static_cast<double>(a.depth);
    const auto made = static_cast<double>(a.nope + a.value_depth), rope = static_cast<double>(a.rope);
    Work more;
    paged.count(0, [&](double fresh, double reach, double pairs) {
      more.bytes += cached_bytes * reach;
      more.operations += heads * std::min(pairs * (2 * depth + rope) + fresh * depth * made,
                                          pairs * (made + rope) + reach * depth * made);
    });
    return more;
  };
  step.run = [=] {
    kernels::LatentAttention now = a;
    now.q_nope = heads(nope);
    now.q_rope = heads(rope);
    now.latent = latent.data<const float>();
    now.latent_token = latent.stride(1);
    now.k_rope = k_rope.data<const float>();
    now.k_rope_token = k_rope.stride(2);
    now.latents.data = paged.keys.data<uint8_t>();
    now.rotated.data = paged.values.data<uint8_t>();
    paged.fill(now);
    now.out = out.data<float>();
    kernels::check_latent_attention(now);
    kernels::latent_attention(now);
  };
  return step;
}

constexpr OpEntry kOps[] = {
    {"attention", "iiimmiiiiIo", 1, 2, make_attention},
    {"mla_expand", "iiiiooo", 0, 0, make_expand},
    {"mla_attention", "iiiiiimmiiiio", 3, 1, make_latent_attention},
};

}  // namespace

const Chain kRotatedAttention{{"attention"}, make_rotated, 1};

OpTable attention_ops() {
  return {kOps, static_cast<int>(std::size(kOps))};
}

}  // namespace ktc::program
