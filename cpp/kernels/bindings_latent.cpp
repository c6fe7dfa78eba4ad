// Python's view of latent attention and of the choice of experts; see bindings.cpp.
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "kernels/address.hpp"
#include "kernels/bindings_parts.hpp"
#include "kernels/latent/latent.hpp"
#include "kernels/router/router.hpp"

namespace nb = nanobind;

namespace ktc::kernels {
namespace {

using Release = nb::call_guard<nb::gil_scoped_release>;

// `number` as one of the first `count` values of an enumeration.
template <typename Kind>
Kind kind_of(int number, int count, const char* what) {
  if (number < 0 || number >= count)
    throw std::invalid_argument(std::string("no such ") + what + ": " + std::to_string(number));
  return static_cast<Kind>(number);
}

HeadWeights weights_of(uint64_t address, int format) {
  if (address % 64) throw std::invalid_argument("a packed weight starts at a multiple of 64 bytes");
  return {kind_of<Format>(format, kFormats, "format"), pointer<const uint8_t>(address)};
}

void bind_router_of(nb::module_& m) {
  m.def(
      "router",
      [](uint64_t logits, int64_t stride, uint64_t bias, int64_t tokens, int64_t experts, int64_t top_k,
         int scoring, int64_t groups, int64_t kept_groups, int group_score, bool normalize, float scale,
         uint64_t weights, uint64_t indices) {
        Router r{};
        r.logits = pointer<const float>(logits);
        r.stride = stride;
        r.bias = pointer<const float>(bias);
        r.tokens = tokens;
        r.experts = experts;
        r.top_k = top_k;
        r.scoring = kind_of<Scoring>(scoring, 3, "scoring");
        r.groups = groups;
        r.kept_groups = kept_groups;
        r.group_score = kind_of<GroupScore>(group_score, 2, "group score");
        r.normalize = normalize;
        r.scale = scale;
        r.weights = pointer<float>(weights);
        r.indices = pointer<int64_t>(indices);
        check_router(r);
        router(r);
      },
      nb::arg("logits"), nb::arg("stride"), nb::arg("bias"), nb::arg("tokens"), nb::arg("experts"),
      nb::arg("top_k"), nb::arg("scoring"), nb::arg("groups"), nb::arg("kept_groups"), nb::arg("group_score"),
      nb::arg("normalize"), nb::arg("scale"), nb::arg("weights"), nb::arg("indices"), Release(),
      "kt.router: scoring 0 softmax, 1 sigmoid, 2 softmax of the chosen; group_score 0 best, 1 two best.\n\n"
      "Raises:\n    ValueError: sizes that do not fit each other.");
}

}  // namespace

void bind_latent(nb::module_& m) {
  bind_router_of(m);
  m.def(
      "latent_expand",
      [](uint64_t q_nope, int64_t q_nope_head, int64_t q_nope_token, uint64_t q_rope, int64_t q_rope_head,
         int64_t q_rope_token, uint64_t kv, int64_t kv_token, uint64_t k_rope, int64_t k_rope_token,
         int64_t heads, int64_t tokens, int64_t nope, int64_t rope, int64_t value_depth, uint64_t q,
         uint64_t k, uint64_t v) {
        if (heads < 1 || tokens < 0 || nope < 1 || rope < 1 || value_depth < 1)
          throw std::invalid_argument("mla_expand: a size is out of range");
        LatentExpansion e{};
        e.q_nope = {pointer<const float>(q_nope), q_nope_head, q_nope_token};
        e.q_rope = {pointer<const float>(q_rope), q_rope_head, q_rope_token};
        e.kv = pointer<const float>(kv);
        e.kv_token = kv_token;
        e.k_rope = pointer<const float>(k_rope);
        e.k_rope_token = k_rope_token;
        e.heads = heads;
        e.tokens = tokens;
        e.nope = nope;
        e.rope = rope;
        e.value_depth = value_depth;
        e.q = pointer<float>(q);
        e.k = pointer<float>(k);
        e.v = pointer<float>(v);
        latent_expand(e);
      },
      nb::arg("q_nope"), nb::arg("q_nope_head"), nb::arg("q_nope_token"), nb::arg("q_rope"),
      nb::arg("q_rope_head"), nb::arg("q_rope_token"), nb::arg("kv"), nb::arg("kv_token"), nb::arg("k_rope"),
      nb::arg("k_rope_token"), nb::arg("heads"), nb::arg("tokens"), nb::arg("nope"), nb::arg("rope"),
      nb::arg("value_depth"), nb::arg("q"), nb::arg("k"), nb::arg("v"), Release(),
      "kt.mla_expand; strides in floats.");
  m.def(
      "latent_attention",
      [](uint64_t q_nope, int64_t q_nope_head, int64_t q_nope_token, uint64_t q_rope, int64_t q_rope_head,
         int64_t q_rope_token, uint64_t latent, int64_t latent_token, uint64_t k_rope, int64_t k_rope_token,
         uint64_t w_key, int key_format, uint64_t w_value, int value_format, uint64_t latents,
         int latents_type, uint64_t rotated, int rotated_type, int64_t heads, int64_t tokens, int64_t nope,
         int64_t rope, int64_t depth, int64_t value_depth, int64_t blocks, int64_t block_size,
         uint64_t seq_starts, uint64_t context_lens, uint64_t block_tables, int64_t sequences,
         int64_t table_columns, uint64_t slots, float scale, int form, uint64_t out) {
        if (tokens < 0 || sequences < 0 || blocks < 0 || table_columns < 0)
          throw std::invalid_argument("mla_attention: a size is negative");
        LatentAttention a{};
        a.q_nope = {pointer<const float>(q_nope), q_nope_head, q_nope_token};
        a.q_rope = {pointer<const float>(q_rope), q_rope_head, q_rope_token};
        a.latent = pointer<const float>(latent);
        a.latent_token = latent_token;
        a.k_rope = pointer<const float>(k_rope);
        a.k_rope_token = k_rope_token;
        a.w_key = weights_of(w_key, key_format);
        a.w_value = weights_of(w_value, value_format);
        a.latents = {pointer<uint8_t>(latents), kind_of<CacheType>(latents_type, kCacheTypes, "cache type")};
        a.rotated = {pointer<uint8_t>(rotated), kind_of<CacheType>(rotated_type, kCacheTypes, "cache type")};
        a.heads = heads;
        a.tokens = tokens;
        a.nope = nope;
        a.rope = rope;
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
        a.form = kind_of<LatentForm>(form, 3, "form");
        a.out = pointer<float>(out);
        check_latent_attention(a);
        latent_attention(a);
      },
      nb::arg("q_nope"), nb::arg("q_nope_head"), nb::arg("q_nope_token"), nb::arg("q_rope"),
      nb::arg("q_rope_head"), nb::arg("q_rope_token"), nb::arg("latent"), nb::arg("latent_token"),
      nb::arg("k_rope"), nb::arg("k_rope_token"), nb::arg("w_key"), nb::arg("key_format"), nb::arg("w_value"),
      nb::arg("value_format"), nb::arg("latents"), nb::arg("latents_type"), nb::arg("rotated"),
      nb::arg("rotated_type"), nb::arg("heads"), nb::arg("tokens"), nb::arg("nope"), nb::arg("rope"),
      nb::arg("depth"), nb::arg("value_depth"), nb::arg("blocks"), nb::arg("block_size"),
      nb::arg("seq_starts"), nb::arg("context_lens"), nb::arg("block_tables"), nb::arg("sequences"),
      nb::arg("table_columns"), nb::arg("slots"), nb::arg("scale"), nb::arg("form"), nb::arg("out"),
      Release(),
      "kt.mla_attention: writes latents and rotated keys into the caches (types 0 float32, 1 float16,\n"
      "2 bfloat16, 3 q8_0), then attends; form 0 chooses, 1 absorbs, 2 expands.\n\n"
      "Raises:\n    ValueError: sizes without a kernel; sequences, blocks or slots outside the caches.");
  m.def("latent_workspace", &latent_workspace, nb::arg("heads"), nb::arg("nope"), nb::arg("rope"),
        nb::arg("depth"), nb::arg("value_depth"), "Most bytes of scratch that latent_attention takes.");
}

}  // namespace ktc::kernels
