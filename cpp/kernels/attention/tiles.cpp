// Cuts attention on tiles: pairs of a sequence and a key head, in waves whose tiles fit in some memory; each
// wave places its positions, then runs of query tokens go through them.
#include "kernels/attention/tiles.hpp"

#include <algorithm>
#include <vector>

#include "isa/isa.hpp"
#include "kernels/scratch.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

#ifdef KTC_AMX
constexpr isa::Dispatch<const TiledAttention> kTiled{nullptr, nullptr, nullptr, nullptr,
                                                     &tiled_attention_amx};
#else
constexpr isa::Dispatch<const TiledAttention> kTiled{};
#endif

// Fewer tokens would be too little work for what placing costs, and are cut along the context elsewhere.
constexpr int64_t kLeastTokens = 9, kLeastRows = 32;
// Of placed positions; a longer pair is a wave of its own.
constexpr int64_t kWaveBytes = int64_t{64} << 20;
// Query rows of a run, and at most where a group has many heads.
constexpr int64_t kRunRows = 256, kMostRunRows = 512;

// A sequence at one key head: its positions from `origin` on, which is a multiple of kTiledPositions.
struct Pair {
  int64_t sequence, kv_head, origin, groups;
  int64_t first_group;  // of the wave
};

// Query tokens of a pair.
struct Run {
  int64_t pair, token, tokens;  // tokens of the sequence
};

int64_t new_tokens(const Attention& a, int64_t sequence) {
  return a.seq_starts[sequence + 1] - a.seq_starts[sequence];
}

struct Tiles {
  const Attention& a;
  const TiledAttention& kernels;
  bool split;
  int64_t key_bytes, value_bytes;
  uint8_t* placed;

  Tiles(const Attention& attention, const TiledAttention& table)
      : a(attention),
        kernels(table),
        split(attention.keys.type != CacheType::bf16),
        key_bytes(tiled_key_bytes(attention.depth, split)),
        value_bytes(tiled_value_bytes(attention.value_depth)),
        placed(nullptr) {}

  int64_t group_bytes() const { return key_bytes + value_bytes; }
  uint8_t* keys_of(const Pair& pair) const { return placed + pair.first_group * group_bytes(); }
  uint8_t* values_of(const Pair& pair) const { return keys_of(pair) + pair.groups * key_bytes; }
  const int32_t* table_of(const Pair& pair) const { return a.block_tables + pair.sequence * a.table_columns; }

  std::vector<Pair> pairs() const {
    std::vector<Pair> all;
    for (int64_t sequence = 0; sequence < a.sequences; ++sequence) {
      if (!attention_on_tiles(a, sequence)) continue;
      const int64_t context = a.context_lens[sequence], cached = context - new_tokens(a, sequence);
      const int64_t origin = oldest_seen(a, cached) / kTiledPositions * kTiledPositions;
      const int64_t groups = (context - origin + kTiledPositions - 1) / kTiledPositions;
      for (int64_t head = 0; head < a.kv_heads; ++head) all.push_back({sequence, head, origin, groups, 0});
    }
    return all;
  }

  void place(const Pair& pair, int64_t group) const {
    const int64_t context = a.context_lens[pair.sequence];
    TiledPlace p{};
    p.pages = {table_of(pair), a.block_size, context};
    p.start = pair.origin + group * kTiledPositions;
    p.count = static_cast<int>(std::min<int64_t>(kTiledPositions, context - p.start));
    p.split = split;
    p.scratch = reinterpret_cast<float*>(worker_scratch().get(
        static_cast<size_t>(kTiledPositions * std::max(a.depth, a.value_depth)) * sizeof(float)));
    p.rows = rows_of_head(a, a.keys, a.depth, pair.kv_head);
    p.out = keys_of(pair) + group * key_bytes;
    kernels.place_keys(p);
    p.rows = rows_of_head(a, a.values, a.value_depth, pair.kv_head);
    p.out = values_of(pair) + group * value_bytes;
    kernels.place_values(p);
  }

  void attend(const Pair& pair, const Run& run) const {
    const int64_t group = a.heads / a.kv_heads, token = a.seq_starts[pair.sequence] + run.token;
    TiledQueries queries{};
    AttentionTile& t = queries.tile;
    t.q = a.q.data + pair.kv_head * group * a.q.head + token * a.q.token;
    t.q_head = a.q.head;
    t.q_token = a.q.token;
    t.heads = static_cast<int>(group);
    t.kv_heads = 1;
    t.tokens = static_cast<int>(run.tokens);
    t.depth = static_cast<int>(a.depth);
    t.value_depth = static_cast<int>(a.value_depth);
    t.position = a.context_lens[pair.sequence] - new_tokens(a, pair.sequence) + run.token;
    t.begin = oldest_seen(a, t.position) / kTiledPositions * kTiledPositions;
    t.end = t.limit = t.position + run.tokens;
    t.window = a.window;
    t.scale = a.scale;
    t.softcap = a.softcap;
    t.sinks = a.sinks ? a.sinks + pair.kv_head * group : nullptr;
    t.out = a.out + (token * a.heads + pair.kv_head * group) * a.value_depth;
    t.out_token = a.heads * a.value_depth;
    const int64_t floats = tiled_scratch(group * run.tokens, a.depth, a.value_depth);
    t.scratch = reinterpret_cast<float*>(worker_scratch().get(static_cast<size_t>(floats) * sizeof(float)));
    queries.split = split;
    queries.keys = keys_of(pair) + (t.begin - pair.origin) / kTiledPositions * key_bytes;
    queries.values = values_of(pair) + (t.begin - pair.origin) / kTiledPositions * value_bytes;
    kernels.attend(queries);
  }

  // Whole blocks of rows of one head where that makes runs of a good size.
  int64_t run_tokens() const {
    const int64_t group = a.heads / a.kv_heads;
    if (group * kTiledRows <= kMostRunRows)
      return std::max<int64_t>(1, kRunRows / (group * kTiledRows)) * kTiledRows;
    return std::max<int64_t>(1, kMostRunRows / group);
  }

  // Runs of all pairs, of each the first, the last, the second, …: late tokens see more positions, and
  // neighbours take equally long together.
  std::vector<Run> runs(const std::vector<Pair>& wave) const {
    std::vector<Run> all;
    const int64_t tokens = run_tokens();
    for (size_t i = 0; i < wave.size(); ++i) {
      const int64_t count = new_tokens(a, wave[i].sequence), parts = (count + tokens - 1) / tokens;
      for (int64_t turn = 0; turn < parts; ++turn) {
        const int64_t part = turn % 2 ? parts - 1 - turn / 2 : turn / 2, first = part * tokens;
        all.push_back({static_cast<int64_t>(i), first, std::min(tokens, count - first)});
      }
    }
    return all;
  }

  void run(std::vector<Pair>& wave) {
    int64_t groups = 0;
    for (Pair& pair : wave) {
      pair.first_group = groups;
      groups += pair.groups;
    }
    placed = caller_scratch().get(static_cast<size_t>(groups * group_bytes()));
    const std::vector<Pair>& pairs = wave;
    runtime::Pool& pool = runtime::Pool::instance();
    pool.parallel_for(groups, 4, [&](int64_t begin, int64_t end, int) {
      const auto later = [](int64_t group, const Pair& pair) { return group < pair.first_group; };
      auto pair = std::upper_bound(pairs.begin(), pairs.end(), begin, later) - 1;
      for (int64_t group = begin; group < end; ++group) {
        while (group >= pair->first_group + pair->groups) ++pair;
        place(*pair, group - pair->first_group);
      }
    });
    const std::vector<Run> all = runs(pairs);
    pool.parallel_for(static_cast<int64_t>(all.size()), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const Run& next = all[static_cast<size_t>(i)];
        attend(pairs[static_cast<size_t>(next.pair)], next);
      }
    });
  }
};

}  // namespace

bool attention_on_tiles(const Attention& a, int64_t sequence) {
  const int64_t tokens = new_tokens(a, sequence);
  // Who keeps floats in the cache gets products of floats.
  return kTiled.pick() && a.keys.type != CacheType::f32 && a.values.type != CacheType::f32 &&
         tokens >= kLeastTokens && tokens * (a.heads / a.kv_heads) >= kLeastRows;
}

void attention_tiled(const Attention& a) {
  if (!kTiled.pick()) return;
  Tiles tiles(a, *kTiled.pick());
  const std::vector<Pair> all = tiles.pairs();
  for (size_t next = 0; next < all.size();) {
    std::vector<Pair> wave;
    for (int64_t bytes = 0; next < all.size(); ++next) {
      bytes += all[next].groups * tiles.group_bytes();
      if (!wave.empty() && bytes > kWaveBytes) break;
      wave.push_back(all[next]);
    }
    tiles.run(wave);
  }
}

}  // namespace ktc::kernels
