// Latent attention with absorbed projections: queries go to the space of latents, where all heads share one
// key; parts of long contexts are added up, and the sums go through the weights of the values.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/attention/rounded.hpp"
#include "kernels/latent/parts.hpp"
#include "kernels/linear/activations.hpp"
#include "kernels/linear/tables.hpp"
#include "kernels/packed/format.hpp"
#include "kernels/scratch.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

// Tokens whose queries are absorbed together, so that the weights are read once for them.
constexpr int64_t kBatchTokens = 64;
// Partial results held at once, counted in tokens times parts of their contexts.
constexpr int64_t kBatchParts = 128;
// A context is cut for sequences of few new tokens, by their own sizes alone.
constexpr int64_t kFewTokens = 8;
constexpr int64_t kPartPositions = 512;
constexpr int64_t kMostParts = 64;
// Multiply-adds worth giving to another thread.
constexpr int64_t kPieceProducts = int64_t{1} << 17;
// Bands of a weight that make one piece of work: DeepSeek's 512 rows are two.
constexpr int64_t kPieceBands = 16;

// Consecutive tokens of one sequence that share a tile of queries.
struct Unit {
  int64_t sequence, token, tokens;  // `token` in the batch of the step
  int64_t position;
  int64_t parts, length;
  int64_t store;  // token-parts before this unit's
};

// Units whose tokens follow each other.
struct Batch {
  int64_t first, last;  // tokens
  const Unit* units;
  int64_t count;
  int64_t store;  // token-parts
};

// Partial results of a batch: sums [token-parts][heads][depth], stats [token-parts][heads][2].
struct Partial {
  float *sums, *stats;
};

int64_t head_groups(int64_t heads) {
  return (heads + kLatentRows - 1) / kLatentRows;
}

int64_t unit_tokens(int64_t heads) {
  return std::max<int64_t>(1, kLatentRows / heads);
}

Unit make_unit(const LatentAttention& a, const LatentSpan& span, int64_t token) {
  const int64_t count = a.seq_starts[span.sequence + 1] - a.seq_starts[span.sequence];
  const int64_t context = a.context_lens[span.sequence];
  Unit u{};
  u.sequence = span.sequence;
  u.token = token;
  u.tokens = std::min(unit_tokens(a.heads), span.last - token);
  u.position = context - (a.seq_starts[span.sequence + 1] - token);
  const int64_t seen = u.position + u.tokens;
  u.length = seen;
  if (count <= kFewTokens) {
    const int64_t even = (context + kMostParts - 1) / kMostParts;
    u.length = std::max(kPartPositions, (even + kAttentionTile - 1) / kAttentionTile * kAttentionTile);
  }
  u.parts = (seen + u.length - 1) / u.length;
  return u;
}

void absorb_queries(const LatentAttention& a, const Batch& batch, float* q_latent) {
  const int64_t tokens = batch.last - batch.first, bands = (a.depth + kBandRows - 1) / kBandRows;
  const int64_t pieces = (bands + kPieceBands - 1) / kPieceBands;
  const int64_t grain = std::max<int64_t>(1, kPieceProducts / (kPieceBands * kBandRows * a.nope * tokens));
  runtime::Pool::instance().parallel_for(a.heads * pieces, grain, [&](int64_t begin, int64_t end, int) {
    uint8_t* records = worker_scratch().get(static_cast<size_t>(product_bytes(tokens, a.nope)));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / pieces, band = i % pieces * kPieceBands;
      head_product(a.w_key, head, a.depth, a.nope,
                   a.q_nope.data + head * a.q_nope.head + batch.first * a.q_nope.token, a.q_nope.token,
                   tokens, q_latent + head * a.depth, a.heads * a.depth, band,
                   std::min(band + kPieceBands, bands), records);
    }
  });
}

void attend_part(const LatentAttention& a, const Batch& batch, const Unit& u, int64_t group, int64_t part,
                 const float* q_latent, const Partial& partial) {
  const int64_t groups = head_groups(a.heads);
  const int64_t head = a.heads * group / groups, heads = a.heads * (group + 1) / groups - head;
  LatentTile t{};
  t.q_latent = {q_latent + ((u.token - batch.first) * a.heads + head) * a.depth, a.depth, a.heads * a.depth};
  t.q_rope = {a.q_rope.data + head * a.q_rope.head + u.token * a.q_rope.token, a.q_rope.head, a.q_rope.token};
  t.heads = static_cast<int>(heads);
  t.tokens = static_cast<int>(u.tokens);
  t.latents = latent_rows(a);
  t.rotated = rotated_rows(a);
  t.begin = part * u.length;
  t.pages = latent_pages(a, u.sequence, std::min(u.position + u.tokens, t.begin + u.length));
  t.position = u.position;
  t.scale = a.scale;
  const int64_t place = (u.store + part * u.tokens) * a.heads + head;
  t.sums = partial.sums + place * a.depth;
  t.stats = partial.stats + place * 2;
  t.sums_token = a.heads * a.depth;
  t.stats_token = a.heads * 2;
  const int64_t rows = heads * u.tokens;
  const RoundedAttention* rounded =
      rows > kStreamedRows ? rounded_attention(a.latents.type, a.rotated.type) : nullptr;
  const int64_t scratch =
      rounded ? rounded_scratch(rows, a.depth + a.rope, a.depth) : latent_scratch(rows, a.depth, a.rope);
  t.scratch = reinterpret_cast<float*>(worker_scratch().get(static_cast<size_t>(scratch) * sizeof(float)));
  (rounded ? rounded->attend_latent : latent_kernels().attend)(t);
}

void attend_batch(const LatentAttention& a, const Batch& batch, const float* q_latent,
                  const Partial& partial) {
  struct Work {
    const Unit* unit;
    int64_t group, part;
  };
  thread_local std::vector<Work> work;
  work.clear();
  int64_t products = 0;
  for (int64_t i = 0; i < batch.count; ++i) {
    const Unit& u = batch.units[i];
    products += u.tokens * a.heads * (u.position + u.tokens) * (2 * a.depth + a.rope);
    for (int64_t part = 0; part < u.parts; ++part) {
      for (int64_t group = 0; group < head_groups(a.heads); ++group) work.push_back({&u, group, part});
    }
  }
  const std::vector<Work>& list = work;  // the caller's, for the other threads
  const int64_t items = static_cast<int64_t>(list.size());
  const int64_t grain = std::max<int64_t>(1, items * kPieceProducts / std::max<int64_t>(products, 1));
  runtime::Pool::instance().parallel_for(items, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const Work& w = list[static_cast<size_t>(i)];
      attend_part(a, batch, *w.unit, w.group, w.part, q_latent, partial);
    }
  });
}

// Adds up the parts of one token and head: out[depth].
void combine(const LatentAttention& a, const Unit& u, int64_t token, int64_t head, const Partial& partial,
             float* out) {
  const int64_t first = (u.store + token) * a.heads + head, step = u.tokens * a.heads;
  float highest = -INFINITY, total = 0;
  for (int64_t p = 0; p < u.parts; ++p) highest = std::max(highest, partial.stats[2 * (first + p * step)]);
  std::fill(out, out + a.depth, 0.0f);
  for (int64_t p = 0; p < u.parts; ++p) {
    const int64_t place = first + p * step;
    const float factor = std::exp(partial.stats[2 * place] - highest);
    const float* sums = partial.sums + place * a.depth;
    total += factor * partial.stats[2 * place + 1];
    for (int64_t d = 0; d < a.depth; ++d) out[d] += factor * sums[d];
  }
  for (int64_t d = 0; d < a.depth; ++d) out[d] /= total;
}

void project_values(const LatentAttention& a, const Batch& batch, const Partial& partial) {
  const int64_t tokens = batch.last - batch.first, bands = (a.value_depth + kBandRows - 1) / kBandRows;
  const int64_t floats = tokens * a.depth;
  const int64_t grain = std::max<int64_t>(1, kPieceProducts / (a.value_depth * a.depth * tokens));
  runtime::Pool::instance().parallel_for(a.heads, grain, [&](int64_t begin, int64_t end, int) {
    const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
    uint8_t* memory = worker_scratch().get(bytes + static_cast<size_t>(product_bytes(tokens, a.depth)));
    float* mixed = reinterpret_cast<float*>(memory);
    for (int64_t head = begin; head < end; ++head) {
      for (int64_t i = 0; i < batch.count; ++i) {
        const Unit& u = batch.units[i];
        for (int64_t token = 0; token < u.tokens; ++token) {
          combine(a, u, token, head, partial, mixed + (u.token - batch.first + token) * a.depth);
        }
      }
      head_product(a.w_value, head, a.value_depth, a.depth, mixed, a.depth, tokens,
                   a.out + (batch.first * a.heads + head) * a.value_depth, a.heads * a.value_depth, 0, bands,
                   memory + bytes);
    }
  });
}

void run_batch(const LatentAttention& a, const Batch& batch) {
  const int64_t queries = (batch.last - batch.first) * a.heads * a.depth;
  const int64_t sums = batch.store * a.heads * a.depth, stats = batch.store * a.heads * 2;
  float* q_latent = reinterpret_cast<float*>(
      caller_scratch().get(static_cast<size_t>(queries + sums + stats) * sizeof(float)));
  const Partial partial{q_latent + queries, q_latent + queries + sums};
  absorb_queries(a, batch, q_latent);
  attend_batch(a, batch, q_latent, partial);
  project_values(a, batch, partial);
}

}  // namespace

int64_t product_bytes(int64_t tokens, int64_t columns) {
  return tokens * activation_record(columns) + kPanelBytes;
}

void head_product(const HeadWeights& weight, int64_t head, int64_t rows, int64_t columns, const float* x,
                  int64_t x_token, int64_t tokens, float* y, int64_t y_token, int64_t begin, int64_t end,
                  uint8_t* records) {
  LinearCall call{};
  call.weight = weight.data + head * head_bytes(weight.format, rows, columns);
  call.rows = rows;
  call.columns = columns;
  call.band_stride = band_bytes(weight.format, columns);
  call.y = y;
  call.y_stride = y_token;
  const int format = static_cast<int>(weight.format);
  if (is_float(weight.format)) {
    call.x = reinterpret_cast<const uint8_t*>(x);
    call.x_stride = x_token * int64_t{sizeof(float)};
    float_kernels().multiply[format](call, begin, end, 0, tokens);
    return;
  }
  const IntegerKernels& kernels = integer_kernels();
  call.x = records;
  call.x_stride = activation_record(columns);
  for (int64_t i = 0; i < tokens; ++i)
    kernels.quantize(x + i * x_token, columns, records + i * call.x_stride);
  if (tokens <= kernels.direct_tokens) return kernels.direct[format](call, begin, end, 0, tokens);
  uint8_t* panel = records + tokens * call.x_stride;
  for (int64_t band = begin; band < end; band += kPanelBands) {
    kernels.panel[format](call, band, std::min<int64_t>(band + kPanelBands, end), 0, tokens, panel);
  }
}

void absorbed_attention(const LatentAttention& a, const LatentSpan* spans, int64_t count) {
  thread_local std::vector<Unit> units;
  units.clear();
  Batch batch{spans[0].first, spans[0].first, nullptr, 0, 0};
  const auto flush = [&] {
    batch.units = units.data();
    batch.count = static_cast<int64_t>(units.size());
    if (batch.count > 0) run_batch(a, batch);
    units.clear();
    batch.first = batch.last;
    batch.store = 0;
  };
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t token = spans[i].first; token < spans[i].last;) {
      Unit u = make_unit(a, spans[i], token);
      const bool full = token + u.tokens - batch.first > kBatchTokens;
      if (full || batch.store + u.tokens * u.parts > kBatchParts) flush();
      u.store = batch.store;
      units.push_back(u);
      token += u.tokens;
      batch.last = token;
      batch.store += u.tokens * u.parts;
    }
  }
  flush();
}

int64_t absorbed_workspace(int64_t heads, int64_t nope, int64_t rope, int64_t depth, int64_t value_depth,
                           int64_t threads) {
  (void)value_depth;
  const int64_t parts = std::max(kBatchParts, unit_tokens(heads) * kMostParts);
  const int64_t shared = kBatchTokens * heads * depth + parts * heads * (depth + 2);
  const int64_t rows = std::max(kLatentRows, static_cast<int>(std::min(heads, int64_t{kLatentRows})));
  const int64_t products = product_bytes(kBatchTokens, std::max(nope, depth));
  const int64_t tile =
      std::max(latent_scratch(rows, depth, rope), rounded_scratch(rows, depth + rope, depth));
  const int64_t own =
      std::max(tile * int64_t{sizeof(float)}, kBatchTokens * depth * int64_t{sizeof(float)} + products);
  return shared * int64_t{sizeof(float)} + threads * own;
}

}  // namespace ktc::kernels
