// Copies the parts of latent attention's queries, keys and values to where attention wants them.
#include <algorithm>

#include "kernels/latent/latent.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {

void latent_expand(const LatentExpansion& e) {
  const int64_t depth = e.nope + e.rope, entry = e.nope + e.value_depth;
  const int64_t grain = std::max<int64_t>(1, (32 << 10) / (e.heads * (2 * depth + e.value_depth)));
  runtime::Pool::instance().parallel_for(e.tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t head = 0; head < e.heads; ++head) {
      for (int64_t token = begin; token < end; ++token) {
        const int64_t row = head * e.tokens + token;
        const float* kv = e.kv + token * e.kv_token + head * entry;
        const float* nope = e.q_nope.data + head * e.q_nope.head + token * e.q_nope.token;
        const float* rope = e.q_rope.data + head * e.q_rope.head + token * e.q_rope.token;
        const float* rotated = e.k_rope + token * e.k_rope_token;
        std::copy(nope, nope + e.nope, e.q + row * depth);
        std::copy(rope, rope + e.rope, e.q + row * depth + e.nope);
        std::copy(kv, kv + e.nope, e.k + row * depth);
        std::copy(rotated, rotated + e.rope, e.k + row * depth + e.nope);
        std::copy(kv + e.nope, kv + entry, e.v + row * e.value_depth);
      }
    }
  });
}

}  // namespace ktc::kernels
