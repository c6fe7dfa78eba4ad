// Latent attention on rounded operands; see attention/rounded.hpp. Expanded, latents and weights meet as
// 16-bit integers too.
#pragma once

#include "kernels/attention/rounded.inl.hpp"

namespace ktc::kernels {
namespace {

inline void scale_row(const float* from, int n, vf scale, float* to) {
  for (int i = 0; i < n; i += kWidth) vstore(to + i, vload(from + i) * scale);
}

// Reads positions and makes codes of their latents and rotated keys together.
inline void round_cached(const CachedRows& latents, const CachedRows& rotated, const Pages& pages,
                         int64_t start, int count, const RoundedSpace& s, int64_t words) {
  const int depth = latents.depth + rotated.depth;
  read_rows(latents, pages, start, count, s.rows, depth);
  read_rows(rotated, pages, start, count, s.rows + latents.depth, depth);
  round_keys(s, count, depth, words);
}

template <bool kBfloats>
void attend_latent_rounded(const LatentTile& t) {
  const int64_t count = int64_t{t.heads} * t.tokens;
  const int latent = t.latents.depth, rope = t.rotated.depth, depth = latent + rope;
  Places16 places{t.scratch};
  const RoundedRows rows = take_rows(places, count, depth, latent);
  const RoundedSpace s = take_space(places, depth, latent);
  clear_rows(rows, count);
  const vf scale = vset(t.scale * kLog2E);
  for (int64_t r = 0; r < count; r += kAttentionTile) {
    const int64_t some = count - r < kAttentionTile ? count - r : kAttentionTile;
    for (int64_t i = 0; i < some; ++i) {
      const int64_t token = (r + i) / t.heads, head = (r + i) % t.heads;
      float* row = s.rows + i * depth;
      scale_row(t.q_latent.data + head * t.q_latent.head + token * t.q_latent.token, latent, scale, row);
      scale_row(t.q_rope.data + head * t.q_rope.head + token * t.q_rope.token, rope, scale, row + latent);
    }
    round_rows(s.rows, depth, some, depth, reinterpret_cast<int16_t*>(rows.queries) + r * rows.words,
               rows.steps + r);
  }
  for (int64_t start = t.begin; start < t.pages.end; start += kAttentionTile) {
    const int64_t left = t.pages.end - start;
    RoundedKeys k{s.keys, s.steps, s.values, 0, 0};
    k.count = static_cast<int>(left < kAttentionTile ? left : kAttentionTile);
    k.columns = (k.count + 15) / 16 * 16;
    round_cached(t.latents, t.rotated, t.pages, start, k.count, s, rows.words);
    round_values<kBfloats>(s.rows, depth, k.count, latent, k.columns, s.values);
    attend_tile<kBfloats>(rows, k, 0, count, s.scores, s.weights, [&](int64_t r, int& first, int& last) {
      const int64_t seen = t.position + r / t.heads + 1 - start;
      first = 0;
      last = static_cast<int>(seen < 0 ? 0 : seen > k.count ? k.count : seen);
    });
  }
  for (int64_t r = 0; r < count; ++r) {
    const int64_t token = r / t.heads, head = r % t.heads;
    scale_row(rows.sums + r * latent, latent, vset(1.0f), t.sums + token * t.sums_token + head * latent);
    float* stats = t.stats + token * t.stats_token + 2 * head;
    stats[0] = natural_highest(rows.highest[r]);
    stats[1] = vsum(vload(rows.totals + 16 * r));
  }
}

// What the weights of a head are rounded to: pairs of codes [latents.depth / 2][nope or value_depth][2].
struct RoundedWeights {
  int32_t *keys, *values;
  float *key_steps, *value_steps;
};

inline RoundedWeights round_weights(const ExpandedTile& t, Places16& places, float* spare) {
  const int64_t depth = t.latents.depth, words = padded_words(depth);
  RoundedWeights w{};
  w.keys = places.take<int32_t>(depth / 2 * t.nope);
  w.values = places.take<int32_t>(depth / 2 * t.value_depth);
  w.key_steps = places.take(t.nope);
  w.value_steps = places.take(t.value_depth);
  for (int64_t n = 0; n < t.nope; n += kWidth) {
    int16_t* codes = reinterpret_cast<int16_t*>(spare);
    round_rows(t.keys + n * depth, depth, kWidth, static_cast<int>(depth), codes, w.key_steps + n);
    turn_words(codes, words, kWidth, t.nope, w.keys + n);
  }
  round_columns(t.values, depth, t.value_depth, w.values, w.value_steps);
  return w;
}

// out[count][stride] = codes times a weight of `width` rows; done in place.
inline void expand_rows(const int16_t* codes, int64_t words, const float* steps, int64_t count,
                        const int32_t* weight, const float* weight_steps, int64_t width, float* out,
                        int64_t stride) {
  int32_t* sums = reinterpret_cast<int32_t*>(out);
  multiply_all_pairs<Words>(reinterpret_cast<const int32_t*>(codes), words / 2, weight, width, words / 2,
                            sums, stride, count, width);
  for (int64_t r = 0; r < count; ++r) {
    const vf step = vset(steps[r]);
    for (int64_t c = 0; c < width; c += kWidth) {
      const vf sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + r * stride + c));
      vstore(out + r * stride + c, sum * (step * vload(weight_steps + c)));
    }
  }
}

template <bool kBfloats>
void attend_expanded_rounded(const ExpandedTile& t) {
  const int latent = t.latents.depth, rope = t.rotated.depth, depth = t.nope + rope, width = t.value_depth;
  const int64_t latent_words = padded_words(latent);
  Places16 places{t.scratch};
  const RoundedRows rows = take_rows(places, t.tokens, depth, width);
  const RoundedSpace s = take_space(places, depth, width);
  float* latents = places.take(int64_t{kAttentionTile} * latent);
  int16_t* latent_codes = places.take<int16_t>(kAttentionTile * latent_words / 2);
  float* latent_steps = places.take(kAttentionTile);
  const RoundedWeights weights = round_weights(t, places, latents);
  clear_rows(rows, t.tokens);
  const vf scale = vset(t.scale * kLog2E);
  for (int64_t r = 0; r < t.tokens; r += kAttentionTile) {
    const int64_t some = t.tokens - r < kAttentionTile ? t.tokens - r : kAttentionTile;
    for (int64_t i = 0; i < some; ++i) {
      scale_row(t.q_nope + (r + i) * t.q_nope_token, t.nope, scale, s.rows + i * depth);
      scale_row(t.q_rope + (r + i) * t.q_rope_token, rope, scale, s.rows + i * depth + t.nope);
    }
    round_rows(s.rows, depth, some, depth, reinterpret_cast<int16_t*>(rows.queries) + r * rows.words,
               rows.steps + r);
  }
  for (int64_t start = 0; start < t.pages.end; start += kAttentionTile) {
    const int64_t left = t.pages.end - start;
    RoundedKeys k{s.keys, s.steps, s.values, 0, 0};
    k.count = static_cast<int>(left < kAttentionTile ? left : kAttentionTile);
    k.columns = (k.count + 15) / 16 * 16;
    read_rows(t.latents, t.pages, start, k.count, latents);
    round_rows(latents, latent, k.count, latent, latent_codes, latent_steps);
    expand_rows(latent_codes, latent_words, latent_steps, k.count, weights.keys, weights.key_steps, t.nope,
                s.rows, depth);
    read_rows(t.rotated, t.pages, start, k.count, s.rows + t.nope, depth);
    round_keys(s, k.count, depth, rows.words);
    float* values = kBfloats ? s.rows : s.values;
    expand_rows(latent_codes, latent_words, latent_steps, k.count, weights.values, weights.value_steps, width,
                values, width);
    round_values<kBfloats>(values, width, k.count, width, k.columns, s.values);
    // Earlier rows see nothing of this tile.
    const int64_t from = start > t.position ? start - t.position : 0;
    attend_tile<kBfloats>(rows, k, from, t.tokens, s.scores, s.weights,
                          [&](int64_t r, int& first, int& last) {
                            const int64_t seen = t.position + r + 1 - start;
                            first = 0;
                            last = static_cast<int>(seen > k.count ? k.count : seen);
                          });
  }
  for (int64_t r = 0; r < t.tokens; ++r) {
    const float total = vsum(vload(rows.totals + 16 * r));
    scale_row(rows.sums + r * width, width, vset(1.0f / total), t.out + r * t.out_token);
  }
}

}  // namespace
}  // namespace ktc::kernels
