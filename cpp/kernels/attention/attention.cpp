// Cuts attention into tiles of queries and, for few queries over long contexts, into parts of the context.
#include "kernels/attention/attention.hpp"

#include <algorithm>
#include <vector>

#include "isa/isa.hpp"
#include "kernels/attention/rounded.hpp"
#include "kernels/attention/tiles.hpp"
#include "kernels/scratch.hpp"
#include "kernels/vector/vector.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

#ifdef KTC_X86
constexpr isa::Dispatch<const AttentionKernels> kKernels{&attention_kernels_generic, &attention_kernels_avx2,
                                                         &attention_kernels_avx512, nullptr};
#else
constexpr isa::Dispatch<const AttentionKernels> kKernels{&attention_kernels_generic};
#endif

// A context is cut for sequences of few new tokens, by their own sizes alone: never by the number of threads,
// nor by the other sequences.
constexpr int64_t kFewTokens = 8;
constexpr int64_t kPartPositions = 256;  // at least
constexpr int64_t kMostParts = 64;
// Positions are rounded once for all queries while they take at most so much memory; longer contexts are
// rounded by each piece of work.
constexpr int64_t kRoundedBytes = int64_t{8} << 20;
// Multiply-adds worth giving to another thread.
constexpr int64_t kPieceProducts = int64_t{1} << 17;
// Tiles of positions to be rounded worth giving to another thread.
constexpr int64_t kPieceRoundings = 2;
// Floats of partial results worth giving to another thread.
constexpr int64_t kPieceSums = int64_t{1} << 15;

// Queries of one sequence and some key heads against positions [begin, end).
struct Work {
  int64_t sequence, kv_head, kv_heads;
  int64_t token;  // in the batch
  int tokens;
  int64_t position, begin, end, limit;
  int64_t part, parts;  // of the same queries
  int64_t store;        // floats before this part's partial results
  int64_t step;         // floats from one part's to the next's
  int64_t rounded;      // floats before the rounded positions from `begin` on, or -1
};

// Positions of a sequence and a key head that are rounded before anything meets them.
struct Rounding {
  int64_t sequence, kv_head, start;
  int count;
  int64_t store;  // floats before them
};

// All that a call does, and the floats that it needs for what passes between its loops.
struct List {
  std::vector<Work> work;
  std::vector<Rounding> roundings;
  int64_t products, partial, rounded;
};

void write_row(const AttentionKernels& kernels, const Cache& cache, int64_t slab, int64_t block_size,
               int64_t offset, int64_t depth, const float* from) {
  uint8_t* start = cache.data + slab * slab_bytes(cache.type, block_size, depth);
  kernels.write_cache(from, depth, cache.type, start + element_bytes(cache.type, offset * depth),
                      start + block_size * depth + 2 * offset * (depth / kCacheGroup));
}

void rotate(const Attention& a, const VectorKernels& level, const float* row, int64_t token, float* out) {
  const Rotation& r = a.rotation;
  level.rope(row, r.cos + token * r.width, r.sin + token * r.width, r.width, a.depth, r.interleaved, out);
}

void write_new(const Attention& a, const AttentionKernels& kernels) {
  const VectorKernels& vectors = vector_kernels();
  const int64_t grain = std::max<int64_t>(1, (16 << 10) / (a.kv_heads * (a.depth + a.value_depth)));
  runtime::Pool::instance().parallel_for(a.tokens, grain, [&](int64_t begin, int64_t end, int) {
    float* rotated = nullptr;
    if (a.rotation.cos)
      rotated = reinterpret_cast<float*>(worker_scratch().get(static_cast<size_t>(a.depth) * sizeof(float)));
    for (int64_t token = begin; token < end; ++token) {
      const int64_t block = a.slots[token] / a.block_size, offset = a.slots[token] % a.block_size;
      for (int64_t head = 0; head < a.kv_heads; ++head) {
        const int64_t slab = block * a.kv_heads + head;
        const float* key = a.k.data + head * a.k.head + token * a.k.token;
        if (rotated) {
          rotate(a, vectors, key, token, rotated);
          key = rotated;
        }
        write_row(kernels, a.keys, slab, a.block_size, offset, a.depth, key);
        write_row(kernels, a.values, slab, a.block_size, offset, a.value_depth,
                  a.v.data + head * a.v.head + token * a.v.token);
      }
    }
  });
}

// Positions of one part of `seen`, a multiple of a tile when there are several.
int64_t part_length(int64_t seen) {
  const int64_t even = (seen + kMostParts - 1) / kMostParts;
  return std::max(kPartPositions, (even + kAttentionTile - 1) / kAttentionTile * kAttentionTile);
}

// Sums of a query row do not depend on which heads go through the cache together, so the threads may decide:
// all of them for the longest runs of memory, fewer where that would leave threads without work.
int64_t heads_together(const Attention& a, int64_t parts) {
  const int64_t wanted = int64_t{4} * runtime::Pool::instance().threads();
  const int64_t pieces = std::clamp<int64_t>((wanted + parts - 1) / parts, 1, a.kv_heads);
  return (a.kv_heads + pieces - 1) / pieces;
}

// Lists the tiles of a sequence from position `oldest` on for all key heads, one head after the other, if
// there is room. Returns the floats of one head, or 0.
int64_t list_roundings(const Attention& a, const RoundedAttention& kernels, int64_t sequence, int64_t oldest,
                       List& list) {
  const int64_t context = a.context_lens[sequence],
                tile = rounded_tile(a.depth, a.value_depth, kernels.bfloats);
  const int64_t tiles = (context - oldest + kAttentionTile - 1) / kAttentionTile;
  const int64_t floats = tiles * tile * a.kv_heads;
  if (list.rounded + floats > kRoundedBytes / 4) return 0;
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    for (int64_t start = oldest; start < context; start += kAttentionTile) {
      const int count = static_cast<int>(std::min<int64_t>(kAttentionTile, context - start));
      list.roundings.push_back({sequence, head, start, count, list.rounded});
      list.rounded += tile;
    }
  }
  return tiles * tile;
}

void list_all(const Attention& a, const RoundedAttention* rounded, List& list) {
  const int64_t group = a.heads / a.kv_heads;
  const int64_t most = std::max<int64_t>(1, kAttentionRows / group);
  list.work.clear();
  list.roundings.clear();
  list.products = list.partial = list.rounded = 0;
  for (int64_t sequence = 0; sequence < a.sequences; ++sequence) {
    const int64_t first = a.seq_starts[sequence], count = a.seq_starts[sequence + 1] - first;
    if (count == 0 || attention_on_tiles(a, sequence)) continue;
    const int64_t cached = a.context_lens[sequence] - count;
    // Tiles begin at the same positions for all tokens, so that they may share them.
    const int64_t origin = oldest_seen(a, cached);
    const int64_t store = list.rounded;
    const int64_t head_floats =
        rounded && count > most ? list_roundings(a, *rounded, sequence, origin, list) : 0;
    for (int64_t token = 0; token < count; token += most) {
      Work w{};
      w.sequence = sequence;
      w.token = first + token;
      w.tokens = static_cast<int>(std::min(most, count - token));
      w.position = cached + token;
      const int64_t skipped = (oldest_seen(a, w.position) - origin) / kAttentionTile,
                    oldest = origin + skipped * kAttentionTile;
      w.limit = w.position + w.tokens;
      const int64_t seen = w.limit - oldest, rows = group * w.tokens;
      list.products += rows * seen * (a.depth + a.value_depth) * a.kv_heads;
      const int64_t length = count <= kFewTokens ? part_length(seen) : seen;
      w.parts = (seen + length - 1) / length;
      const int64_t together = rows <= kStreamedRows ? heads_together(a, a.sequences * w.parts) : 1;
      for (w.kv_head = 0; w.kv_head < a.kv_heads; w.kv_head += together) {
        w.kv_heads = std::min(together, a.kv_heads - w.kv_head);
        w.step = w.kv_heads * rows * (a.value_depth + 2);
        w.rounded = -1;
        if (head_floats > 0 && rows > kStreamedRows) {
          w.rounded = store + w.kv_head * head_floats +
                      skipped * rounded_tile(a.depth, a.value_depth, rounded->bfloats);
        }
        for (w.part = 0; w.part < w.parts; ++w.part) {
          w.begin = oldest + w.part * length;
          w.end = std::min(w.limit, w.begin + length);
          w.store = list.partial;
          if (w.parts > 1) list.partial += w.step;
          list.work.push_back(w);
        }
      }
    }
  }
}

void round_positions(const Attention& a, const RoundedAttention& kernels, const Rounding& r, float* rounded) {
  RoundedTile t{};
  t.keys = rows_of_head(a, a.keys, a.depth, r.kv_head);
  t.values = rows_of_head(a, a.values, a.value_depth, r.kv_head);
  t.pages = {a.block_tables + r.sequence * a.table_columns, a.block_size, a.context_lens[r.sequence]};
  t.start = r.start;
  t.count = r.count;
  t.out = rounded + r.store;
  const int64_t scratch = rounded_scratch(0, a.depth, a.value_depth);
  t.scratch = reinterpret_cast<float*>(worker_scratch().get(static_cast<size_t>(scratch) * sizeof(float)));
  kernels.round(t);
}

void run(const Attention& a, const AttentionKernels& kernels, const RoundedAttention* level, const Work& w,
         float* partial, float* rounded_positions) {
  const int64_t group = a.heads / a.kv_heads, rows = group * w.kv_heads * w.tokens;
  AttentionTile t{};
  t.q = a.q.data + w.kv_head * group * a.q.head + w.token * a.q.token;
  t.q_head = a.q.head;
  t.q_token = a.q.token;
  t.heads = static_cast<int>(group * w.kv_heads);
  t.kv_heads = static_cast<int>(w.kv_heads);
  t.tokens = w.tokens;
  t.depth = static_cast<int>(a.depth);
  t.value_depth = static_cast<int>(a.value_depth);
  t.key_slab = slab_bytes(a.keys.type, a.block_size, a.depth);
  t.value_slab = slab_bytes(a.values.type, a.block_size, a.value_depth);
  t.keys = a.keys.data + w.kv_head * t.key_slab;
  t.values = a.values.data + w.kv_head * t.value_slab;
  t.key_block = a.kv_heads * t.key_slab;
  t.value_block = a.kv_heads * t.value_slab;
  t.key_type = a.keys.type;
  t.value_type = a.values.type;
  t.block_size = a.block_size;
  t.table = a.block_tables + w.sequence * a.table_columns;
  t.begin = w.begin;
  t.end = w.end;
  t.limit = w.limit;
  t.rounded = w.rounded < 0 ? nullptr : rounded_positions + w.rounded;
  t.position = w.position;
  t.window = a.window;
  t.scale = a.scale;
  t.softcap = a.softcap;
  t.sinks = a.sinks ? a.sinks + w.kv_head * group : nullptr;
  const bool streamed = group * w.tokens <= kStreamedRows;
  const RoundedAttention* rounded = streamed ? nullptr : level;
  const int64_t scratch = rounded ? rounded_scratch(rows, a.depth, a.value_depth)
                                  : attention_scratch(rows, a.depth, a.value_depth);
  // Rotated queries lie behind what the kernel needs, in whole cache lines.
  const int64_t before = (scratch + 15) / 16 * 16, rotated = a.rotation.cos ? rows * a.depth : 0;
  t.scratch =
      reinterpret_cast<float*>(worker_scratch().get(static_cast<size_t>(before + rotated) * sizeof(float)));
  if (a.rotation.cos) {
    const VectorKernels& vectors = vector_kernels();
    float* out = t.scratch + before;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t token = i / t.heads, head = i % t.heads;
      rotate(a, vectors, t.q + head * t.q_head + token * t.q_token, w.token + token, out + i * a.depth);
    }
    t.q = out;
    t.q_head = a.depth;
    t.q_token = t.heads * a.depth;
  }
  if (w.parts == 1) {
    t.out = a.out + (w.token * a.heads + w.kv_head * group) * a.value_depth;
    t.out_token = a.heads * a.value_depth;
  } else {
    t.sums = partial + w.store;
    t.highest = t.sums + rows * a.value_depth;
    t.total = t.highest + rows;
  }
  (streamed ? kernels.stream : rounded ? rounded->attend : kernels.attend)(t);
}

// Adds up the parts of a piece of work's query rows.
void combine(const Attention& a, const AttentionKernels& kernels, const Work& w, const float* partial) {
  const int64_t group = a.heads / a.kv_heads, rows = group * w.kv_heads * w.tokens, depth = a.value_depth;
  const float* store = partial + w.store;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = w.kv_head * group + row / w.tokens, token = w.token + row % w.tokens;
    AttentionParts p{};
    p.sums = store + row * depth;
    p.highest = store + rows * depth + row;
    p.total = p.highest + rows;
    p.parts = w.parts;
    p.stride = w.step;
    p.sink = a.sinks ? a.sinks + head : nullptr;
    p.value_depth = static_cast<int>(depth);
    p.out = a.out + (token * a.heads + head) * depth;
    kernels.combine(p);
  }
}

}  // namespace

bool attention_rotates(const Attention& a) {
  for (int64_t sequence = 0; sequence < a.sequences; ++sequence)
    if (attention_on_tiles(a, sequence)) return false;
  return true;
}

void attention(const Attention& a) {
  if (a.tokens <= 0) return;
  const AttentionKernels& kernels = *kKernels.pick();
  const int64_t token_floats = a.heads * a.value_depth;
  const int64_t from = a.sequences > 0 ? a.seq_starts[0] : a.tokens;
  const int64_t to = a.sequences > 0 ? a.seq_starts[a.sequences] : a.tokens;
  std::fill(a.out, a.out + from * token_floats, 0.0f);
  std::fill(a.out + to * token_floats, a.out + a.tokens * token_floats, 0.0f);
  write_new(a, kernels);
  attention_tiled(a);

  const RoundedAttention* rounded = rounded_attention(a.keys.type, a.values.type);
  thread_local List all;
  list_all(a, rounded, all);
  const List& list = all;  // the caller's, for the other threads
  float *partial = nullptr, *rounded_positions = nullptr;
  if (const int64_t floats = list.rounded + list.partial; floats > 0) {
    rounded_positions =
        reinterpret_cast<float*>(caller_scratch().get(static_cast<size_t>(floats) * sizeof(float)));
    partial = rounded_positions + list.rounded;
  }
  runtime::Pool& pool = runtime::Pool::instance();
  pool.parallel_for(
      static_cast<int64_t>(list.roundings.size()), kPieceRoundings, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i)
          round_positions(a, *rounded, list.roundings[static_cast<size_t>(i)], rounded_positions);
      });
  const int64_t items = static_cast<int64_t>(list.work.size());
  const int64_t grain = std::max<int64_t>(1, items * kPieceProducts / std::max<int64_t>(list.products, 1));
  pool.parallel_for(items, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      run(a, kernels, rounded, list.work[static_cast<size_t>(i)], partial, rounded_positions);
  });
  if (list.partial == 0) return;
  const int64_t sums = std::max<int64_t>(1, list.partial / items);
  pool.parallel_for(items, std::max<int64_t>(1, kPieceSums / sums), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const Work& w = list.work[static_cast<size_t>(i)];
      if (w.parts > 1 && w.part == 0) combine(a, kernels, w, partial);
    }
  });
}

}  // namespace ktc::kernels
