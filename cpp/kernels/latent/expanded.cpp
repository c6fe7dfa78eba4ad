// Latent attention of one sequence with many new tokens: a head's keys and values are expanded from the
// latents, tile by tile, for a run of its tokens.
#include <algorithm>

#include "kernels/attention/rounded.hpp"
#include "kernels/latent/parts.hpp"
#include "kernels/scratch.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

// Tokens that meet the keys of a tile together: more share the expansion, fewer give work to more threads.
constexpr int64_t kMostTokens = 1024;
constexpr int64_t kFewestTokens = 128;

int64_t scratch_floats(int64_t tokens, int64_t nope, int64_t rope, int64_t depth, int64_t value_depth) {
  const int64_t weights = depth * (nope + value_depth);  // a multiple of 16
  return weights + std::max(expanded_scratch(tokens, nope, rope, depth, value_depth),
                            expanded_rounded_scratch(tokens, nope, rope, depth, value_depth));
}

}  // namespace

void expanded_attention(const LatentAttention& a, int64_t sequence) {
  runtime::Pool& pool = runtime::Pool::instance();
  const LatentKernels& kernels = latent_kernels();
  const RoundedAttention* rounded = rounded_attention(a.latents.type, a.rotated.type);
  const int64_t first = a.seq_starts[sequence], count = a.seq_starts[sequence + 1] - first;
  const int64_t cached = a.context_lens[sequence] - count;
  // A token's result is the same in whatever run it is, so the threads may decide on the runs.
  const int64_t wanted = (int64_t{4} * pool.threads() + a.heads - 1) / a.heads;
  const int64_t run =
      std::clamp<int64_t>((count + wanted - 1) / wanted, std::min(kFewestTokens, count), kMostTokens);
  const int64_t runs = (count + run - 1) / run;
  const int64_t key_step = head_bytes(a.w_key.format, a.depth, a.nope);
  const int64_t value_step = head_bytes(a.w_value.format, a.value_depth, a.depth);
  const size_t bytes =
      static_cast<size_t>(scratch_floats(run, a.nope, a.rope, a.depth, a.value_depth)) * sizeof(float);
  pool.parallel_for(a.heads * runs, 1, [&](int64_t begin, int64_t end, int) {
    float* weights = reinterpret_cast<float*>(worker_scratch().get(bytes));
    float* keys = weights;
    float* values = keys + a.depth * a.nope;
    for (int64_t i = begin; i < end; ++i) {
      // Later runs see more and start first.
      const int64_t head = i % a.heads, token = (runs - 1 - i / a.heads) * run;
      const int64_t tokens = std::min(run, count - token);
      kernels.unpack[static_cast<int>(a.w_key.format)](a.w_key.data + head * key_step, a.depth, a.nope, keys);
      kernels.unpack[static_cast<int>(a.w_value.format)](a.w_value.data + head * value_step, a.value_depth,
                                                         a.depth, values);
      ExpandedTile t{};
      t.q_nope = a.q_nope.data + head * a.q_nope.head + (first + token) * a.q_nope.token;
      t.q_rope = a.q_rope.data + head * a.q_rope.head + (first + token) * a.q_rope.token;
      t.q_nope_token = a.q_nope.token;
      t.q_rope_token = a.q_rope.token;
      t.tokens = static_cast<int>(tokens);
      t.nope = static_cast<int>(a.nope);
      t.value_depth = static_cast<int>(a.value_depth);
      t.keys = keys;
      t.values = values;
      t.latents = latent_rows(a);
      t.rotated = rotated_rows(a);
      t.position = cached + token;
      t.pages = latent_pages(a, sequence, t.position + tokens);
      t.scale = a.scale;
      t.out = a.out + ((first + token) * a.heads + head) * a.value_depth;
      t.out_token = a.heads * a.value_depth;
      t.scratch = values + a.depth * a.value_depth;
      (rounded ? rounded->attend_expanded : kernels.attend_expanded)(t);
    }
  });
}

int64_t expanded_workspace(int64_t nope, int64_t rope, int64_t depth, int64_t value_depth, int64_t threads) {
  return threads * scratch_floats(kMostTokens, nope, rope, depth, value_depth) * int64_t{sizeof(float)};
}

}  // namespace ktc::kernels
