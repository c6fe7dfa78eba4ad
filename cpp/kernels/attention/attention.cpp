// Cuts attention into tiles of queries and, for few queries over long contexts, into parts of the context.
#include "kernels/attention/attention.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "isa/isa.hpp"
#include "kernels/scratch.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

#ifdef KTC_X86
constexpr isa::Dispatch<const AttentionKernels> kKernels{&attention_kernels_generic, &attention_kernels_avx2,
                                                         &attention_kernels_avx512, nullptr};
#else
constexpr isa::Dispatch<const AttentionKernels> kKernels{&attention_kernels_generic};
#endif

// Positions of one part, when the context is cut. The cut depends on the step alone, never on the number of
// threads.
constexpr int64_t kPartPositions = 512;
// Multiply-adds worth giving to another thread.
constexpr int64_t kPieceProducts = int64_t{1} << 17;

int64_t element_bytes(CacheType type) {
  return type == CacheType::f32 ? 4 : 2;
}

// Queries of one sequence and one key head against positions [begin, end).
struct Work {
  int64_t sequence, kv_head;
  int64_t token;  // in the batch
  int tokens;
  int64_t position, begin, end;
  int64_t part, parts;  // of the same queries
  int64_t store;        // floats before this part's partial results
};

void write_new(const Attention& a, const AttentionKernels& kernels) {
  const int64_t key_row = a.depth * element_bytes(a.keys.type),
                value_row = a.value_depth * element_bytes(a.values.type);
  const int64_t grain = std::max<int64_t>(1, (16 << 10) / (a.kv_heads * (a.depth + a.value_depth)));
  runtime::Pool::instance().parallel_for(a.tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t block = a.slots[token] / a.block_size, offset = a.slots[token] % a.block_size;
      for (int64_t head = 0; head < a.kv_heads; ++head) {
        const int64_t row = (block * a.kv_heads + head) * a.block_size + offset;
        kernels.write_cache(a.k.data + head * a.k.head + token * a.k.token, a.depth, a.keys.type,
                            a.keys.data + row * key_row);
        kernels.write_cache(a.v.data + head * a.v.head + token * a.v.token, a.value_depth, a.values.type,
                            a.values.data + row * value_row);
      }
    }
  });
}

// The list of work, and the floats that partial results need.
int64_t cut(const Attention& a, std::vector<Work>& work, int64_t& products) {
  const int64_t group = a.heads / a.kv_heads;
  const int64_t most = std::max<int64_t>(1, kAttentionRows / group);
  int64_t partial = 0;
  products = 0;
  for (int64_t sequence = 0; sequence < a.sequences; ++sequence) {
    const int64_t first = a.seq_starts[sequence], count = a.seq_starts[sequence + 1] - first;
    if (count == 0) continue;
    const int64_t cached = a.context_lens[sequence] - count;
    for (int64_t token = 0; token < count; token += most) {
      Work w{};
      w.sequence = sequence;
      w.token = first + token;
      w.tokens = static_cast<int>(std::min(most, count - token));
      w.position = cached + token;
      const int64_t oldest = a.window > 0 ? std::max<int64_t>(0, w.position - a.window + 1) : 0;
      const int64_t newest = w.position + w.tokens;
      const int64_t rows = group * w.tokens;
      products += rows * (newest - oldest) * (a.depth + a.value_depth) * a.kv_heads;
      w.parts = count <= 8 ? (newest - oldest + kPartPositions - 1) / kPartPositions : 1;
      const int64_t length = w.parts > 1 ? kPartPositions : newest - oldest;
      for (w.kv_head = 0; w.kv_head < a.kv_heads; ++w.kv_head) {
        for (w.part = 0; w.part < w.parts; ++w.part) {
          w.begin = oldest + w.part * length;
          w.end = std::min(newest, w.begin + length);
          w.store = partial;
          if (w.parts > 1) partial += rows * (a.value_depth + 2);
          work.push_back(w);
        }
      }
    }
  }
  return partial;
}

void run(const Attention& a, const AttentionKernels& kernels, const Work& w, float* partial) {
  const int64_t group = a.heads / a.kv_heads, rows = group * w.tokens;
  AttentionTile t{};
  t.q = a.q.data + w.kv_head * group * a.q.head + w.token * a.q.token;
  t.q_head = a.q.head;
  t.q_token = a.q.token;
  t.heads = static_cast<int>(group);
  t.tokens = w.tokens;
  t.depth = static_cast<int>(a.depth);
  t.value_depth = static_cast<int>(a.value_depth);
  const int64_t key_head = a.block_size * a.depth * element_bytes(a.keys.type);
  const int64_t value_head = a.block_size * a.value_depth * element_bytes(a.values.type);
  t.keys = a.keys.data + w.kv_head * key_head;
  t.values = a.values.data + w.kv_head * value_head;
  t.key_block = a.kv_heads * key_head;
  t.value_block = a.kv_heads * value_head;
  t.key_type = a.keys.type;
  t.value_type = a.values.type;
  t.block_size = a.block_size;
  t.table = a.block_tables + w.sequence * a.table_columns;
  t.begin = w.begin;
  t.end = w.end;
  t.position = w.position;
  t.window = a.window;
  t.scale = a.scale;
  t.softcap = a.softcap;
  t.sinks = a.sinks ? a.sinks + w.kv_head * group : nullptr;
  t.scratch = reinterpret_cast<float*>(worker_scratch().get(
      static_cast<size_t>(attention_scratch(rows, a.depth, a.value_depth)) * sizeof(float)));
  if (w.parts == 1) {
    t.out = a.out + (w.token * a.heads + w.kv_head * group) * a.value_depth;
    t.out_token = a.heads * a.value_depth;
  } else {
    t.sums = partial + w.store;
    t.highest = t.sums + rows * a.value_depth;
    t.total = t.highest + rows;
  }
  kernels.attend(t);
}

// Adds up the parts of one query row.
void combine(const Attention& a, const Work& w, int64_t row, const float* partial) {
  const int64_t group = a.heads / a.kv_heads, rows = group * w.tokens, depth = a.value_depth;
  const int64_t stride = rows * (depth + 2);
  const int64_t head = w.kv_head * group + row / w.tokens, token = w.token + row % w.tokens;
  const float* store = partial + w.store;
  float highest = a.sinks ? a.sinks[head] : -INFINITY;
  for (int64_t p = 0; p < w.parts; ++p) highest = std::max(highest, store[p * stride + rows * depth + row]);
  float total = a.sinks ? std::exp(a.sinks[head] - highest) : 0.0f;
  float* out = a.out + (token * a.heads + head) * depth;
  std::fill(out, out + depth, 0.0f);
  for (int64_t p = 0; p < w.parts; ++p) {
    const float* part = store + p * stride;
    const float factor = std::exp(part[rows * depth + row] - highest);
    total += factor * part[rows * depth + rows + row];
    for (int64_t d = 0; d < depth; ++d) out[d] += factor * part[row * depth + d];
  }
  for (int64_t d = 0; d < depth; ++d) out[d] /= total;
}

}  // namespace

void attention(const Attention& a) {
  if (a.tokens <= 0) return;
  const AttentionKernels& kernels = *kKernels.pick();
  const int64_t token_floats = a.heads * a.value_depth;
  const int64_t from = a.sequences > 0 ? a.seq_starts[0] : a.tokens;
  const int64_t to = a.sequences > 0 ? a.seq_starts[a.sequences] : a.tokens;
  std::fill(a.out, a.out + from * token_floats, 0.0f);
  std::fill(a.out + to * token_floats, a.out + a.tokens * token_floats, 0.0f);
  write_new(a, kernels);

  thread_local std::vector<Work> work;
  work.clear();
  int64_t products = 0;
  const int64_t partial_floats = cut(a, work, products);
  float* partial = nullptr;
  if (partial_floats > 0) {
    partial =
        reinterpret_cast<float*>(caller_scratch().get(static_cast<size_t>(partial_floats) * sizeof(float)));
  }
  const std::vector<Work>& list = work;  // the caller's, for the other threads
  const int64_t items = static_cast<int64_t>(list.size());
  const int64_t grain = std::max<int64_t>(1, items * kPieceProducts / std::max<int64_t>(products, 1));
  runtime::Pool::instance().parallel_for(items, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) run(a, kernels, list[static_cast<size_t>(i)], partial);
  });
  if (partial_floats == 0) return;
  for (const Work& w : list) {
    if (w.parts == 1 || w.part != 0) continue;
    const int64_t rows = a.heads / a.kv_heads * w.tokens;
    for (int64_t row = 0; row < rows; ++row) combine(a, w, row, partial);
  }
}

}  // namespace ktc::kernels
