// The routed experts on tiles.
//
// Each expert's tokens are gathered into groups of up to 16, as tiles of bf16, once: in waves of experts, so
// that a wave's activations stay in L3. Items of a wave's second loop are some gate and up rows of one expert
// for up to kRunGroups groups; they end with tiles that the down matrix reads.
//
// The down matrix is cut into chains: rows of the result, for which one expert after the other adds its
// share, so that the order of a sum is always the same. Any thread takes the next step of a chain that no
// other has taken; whoever finishes a step prefers to stay with its chain, unless another one is far behind.
#include "kernels/experts/tiles.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "kernels/experts/matrix.hpp"
#include "kernels/linear/activations.hpp"
#include "kernels/linear/tables.hpp"
#include "kernels/scratch.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

constexpr int64_t kWaveBytes = int64_t{128} << 20;  // of gathered activations
constexpr int64_t kRunGroups = 16;                  // groups that meet a block of weights at once
constexpr int64_t kGateRows = 256;                  // of an item, gate and up together
constexpr int64_t kChainRows = 512;                 // at most
constexpr int kLag = 4;  // steps that a chain may be ahead of another before its thread leaves it

// Up to kRunGroups groups of the tokens of one expert.
struct Run {
  int64_t expert, first_group, groups;  // of all groups of the call
  int64_t first, count;                 // choices
  int tokens;                           // of each group but the last
};

struct alignas(64) Chain {
  std::atomic<bool> taken{false};
  std::atomic<int64_t> next{0};  // step
};

struct Step {
  const Experts& experts;
  const Route& route;
  const TileKernels& tiles;
  const TileExpertKernels& kernels;
  Matrix gate_up, down;
  const float* x;
  int64_t tokens;
  float* y;
  std::vector<Run> runs;
  uint8_t *gathered, *inner;  // groups of tiles; `gathered` has those of one wave

  void make_runs() {
    int64_t group = 0;
    for (int64_t active = 0; active < route.active; ++active) {
      int64_t first = route.begin[active];
      const int64_t end = route.begin[active + 1], all = tile_groups(end - first);
      const int each = static_cast<int>(tile_group_tokens(end - first));
      const int64_t parts = (all + kRunGroups - 1) / kRunGroups, length = (all + parts - 1) / parts;
      for (int64_t begin = 0; begin < all; begin += length) {
        const int64_t groups = std::min(length, all - begin), count = std::min(groups * each, end - first);
        runs.push_back({route.expert[active], group, groups, first, count, each});
        group += groups;
        first += count;
      }
    }
  }

  TileCall call(const Matrix& matrix, const Run& run, int64_t row, int64_t rows,
                const uint8_t* x_tiles) const {
    const int64_t sums = rows / kBlockColumns * ((run.groups + 1) / 2) * kTileSums;
    uint8_t* panel = worker_scratch().get(static_cast<size_t>(kTileWeightBytes + sums * 4));
    TileCall call{};
    call.weight = matrix.band(run.expert, row);
    call.band_stride = matrix.band_stride;
    call.bands = rows / kBandRows;
    call.columns = matrix.columns;
    call.x = x_tiles;
    call.groups = run.groups;
    call.tokens = run.tokens;
    call.panel = panel;
    call.sums = reinterpret_cast<float*>(panel + kTileWeightBytes);
    return call;
  }

  // Tokens of group `group` of a run.
  static int tokens_of(const Run& run, int64_t group) {
    return static_cast<int>(std::min<int64_t>(run.tokens, run.count - group * run.tokens));
  }

  void gather(const Run& run, int64_t group, uint8_t* to) const {
    const int32_t* token = route.token + run.first + group * run.tokens;
    for (int i = 0; i < tokens_of(run, group); ++i)
      tiles.place(x + token[i] * experts.hidden, experts.hidden, to + 64 * i);
  }

  // Gate and up rows packed from `row` on.
  void gate_item(const Run& run, int64_t row, int64_t rows, const uint8_t* x_tiles,
                 const uint8_t* after) const {
    TileCall call = this->call(gate_up, run, row, rows, x_tiles);
    call.after = after;
    tiles.product[static_cast<int>(gate_up.format)](call);
    const auto gate = kernels.gate[static_cast<int>(experts.gate)];
    const int64_t panel_sums = (run.groups + 1) / 2 * kTileSums;
    for (int64_t pair = 0; pair < rows / (2 * kBlockColumns); ++pair) {
      const int64_t block = row / (2 * kBlockColumns) + pair;
      const float* bias =
          gate_up.bias ? gate_up.bias + run.expert * gate_up.rows + block * kBlockColumns : nullptr;
      for (int64_t group = 0; group < run.groups; ++group) {
        const float* sums = call.sums + 2 * pair * panel_sums + group * (kTileSums / 2);
        gate(sums, sums + panel_sums, tokens_of(run, group), bias, bias ? bias + experts.inner : nullptr,
             inner + (run.first_group + group) * tile_group_bytes(down.columns) + block * kTileBytes);
      }
    }
  }

  // Runs [first, last): gathers their tokens, then multiplies.
  void wave(int64_t first, int64_t last) const {
    runtime::Pool& pool = runtime::Pool::instance();
    const int64_t base = runs[first].first_group;
    std::vector<int64_t> groups{0};
    for (int64_t i = first; i < last; ++i) groups.push_back(groups.back() + runs[i].groups);
    pool.parallel_for(groups.back(), 1, [&](int64_t begin, int64_t end, int) {
      int64_t run = std::upper_bound(groups.begin(), groups.end(), begin) - groups.begin() - 1;
      for (int64_t group = begin; group < end; ++group) {
        while (group >= groups[run + 1]) ++run;
        gather(runs[first + run], group - groups[run], gathered + group * tile_group_bytes(gate_up.columns));
      }
    });

    const int64_t items = (gate_up.rows + kGateRows - 1) / kGateRows;  // of a run
    pool.parallel_for((last - first) * items, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t item = begin; item < end; ++item) {
        const Run& run = runs[first + item / items];
        const int64_t row = item % items * kGateRows, next = (item + 1) % items * kGateRows;
        const uint8_t* after = nullptr;
        if (item + 1 < (last - first) * items)
          after = gate_up.band(runs[first + (item + 1) / items].expert, next);
        gate_item(run, row, std::min(kGateRows, gate_up.rows - row),
                  gathered + (run.first_group - base) * tile_group_bytes(gate_up.columns), after);
      }
    });
  }

  // The share of a run in the rows packed in [row, row + rows).
  void down_step(int64_t step, int64_t row, int64_t rows, const int32_t* places) const {
    const int64_t panels = rows / kBlockColumns;
    const Run& run = runs[step];
    TileCall call =
        this->call(down, run, row, rows, inner + run.first_group * tile_group_bytes(down.columns));
    if (step + 1 < static_cast<int64_t>(runs.size())) call.after = down.band(runs[step + 1].expert, row);
    tiles.product[static_cast<int>(down.format)](call);

    const float* bias = down.bias ? down.bias + run.expert * experts.hidden : nullptr;
    const int64_t stride = (run.groups + 1) / 2 * kTileSums;
    constexpr int64_t kAhead = 4;
    for (int64_t i = 0; i < run.count; ++i) {
      const int32_t* token = route.token + run.first + i;
      if (i + kAhead < run.count) {
        const float* ahead = y + token[kAhead] * experts.hidden;
        for (int64_t panel = 0; panel < panels; ++panel) {
          __builtin_prefetch(ahead + places[panel], 1);
          __builtin_prefetch(ahead + places[panel] + 16, 1);
        }
      }
      const int64_t group = i / run.tokens;
      kernels.add(call.sums + group * (kTileSums / 2) + i % run.tokens * 16, stride, panels, places,
                  route.weight[run.first + i], bias, y + *token * experts.hidden);
    }
  }

  void run_chains() const {
    runtime::Pool& pool = runtime::Pool::instance();
    // By tokens: chains would share the pages of a fresh result, and all of their threads wait for each.
    pool.parallel_for(tokens, std::max<int64_t>(1, (int64_t{64} << 10) / (4 * experts.hidden)),
                      [&](int64_t begin, int64_t end, int) {
                        std::memset(y + begin * experts.hidden, 0,
                                    static_cast<size_t>((end - begin) * experts.hidden) * 4);
                      });
    // A few more chains than threads, so that one is free for who finishes early.
    const int64_t threads = pool.threads(),
                  share = threads == 1 ? experts.hidden : experts.hidden * 4 / (5 * threads);
    const int64_t rows =
        std::clamp<int64_t>(share / kBlockColumns * kBlockColumns, kBlockColumns, kChainRows);
    const int64_t count = (experts.hidden + rows - 1) / rows, steps = static_cast<int64_t>(runs.size());
    std::vector<Chain> chains(static_cast<size_t>(count));
    std::vector<int32_t> places;
    for (int64_t row = 0; row < experts.hidden; row += kBlockColumns)
      places.push_back(static_cast<int32_t>(down.row_at(row)));

    pool.parallel_for(threads, 1, [&](int64_t begin, int64_t, int) {
      int64_t own = begin * count / threads;
      for (;;) {
        int64_t lowest = steps, behind = -1;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t c = (own + i) % count, next = chains[c].next.load(std::memory_order_relaxed);
          if (next < lowest && !chains[c].taken.load(std::memory_order_relaxed)) {
            lowest = next;
            behind = c;
          }
        }
        // Whoever holds the chains that are left goes on with them.
        if (behind < 0) return;
        const int64_t at = chains[own].next.load(std::memory_order_relaxed);
        if (at >= steps || at > lowest + kLag) own = behind;
        Chain& chain = chains[own];
        if (chain.taken.exchange(true, std::memory_order_acquire)) {
          own = behind;
          continue;
        }
        const int64_t step = chain.next.load(std::memory_order_relaxed);
        if (step < steps) {
          down_step(step, own * rows, std::min(rows, experts.hidden - own * rows),
                    places.data() + own * rows / kBlockColumns);
          chain.next.store(step + 1, std::memory_order_relaxed);
        }
        chain.taken.store(false, std::memory_order_release);
      }
    });
  }

  void run() {
    make_runs();
    const int64_t most = kWaveBytes / tile_group_bytes(gate_up.columns),
                  all = static_cast<int64_t>(runs.size());
    for (int64_t first = 0, last = 0; first < all; first = last) {
      for (int64_t groups = 0; last < all && (last == first || groups + runs[last].groups <= most); ++last)
        groups += runs[last].groups;
      wave(first, last);
    }
    run_chains();
  }
};

// The most groups that so many choices make.
int64_t most_groups(const Experts& experts, int64_t choices) {
  return tile_groups(choices) + std::min(experts.count, choices);
}

int64_t gathered_bytes(const Experts& experts, int64_t choices) {
  const int64_t group = tile_group_bytes(experts.hidden);
  return std::min(most_groups(experts, choices), std::max(kWaveBytes / group, kRunGroups)) * group;
}

}  // namespace

bool experts_on_tiles(const Experts& experts, int64_t expert_tokens) {
  return !is_float(experts.gate_up_format) && !is_float(experts.down_format) && tile_expert_kernels() &&
         tile_kernels(expert_tokens);
}

int64_t experts_tiles_workspace(const Experts& experts, int64_t tokens, int64_t chosen) {
  const int64_t choices = tokens * chosen;
  return gathered_bytes(experts, choices) + most_groups(experts, choices) * tile_group_bytes(experts.inner);
}

void experts_tiles(const Experts& experts, const Route& route, const float* x, int64_t tokens, int64_t chosen,
                   float* y, uint8_t* workspace) {
  const int64_t choices = tokens * chosen;
  Step step{experts,
            route,
            *tile_kernels(choices / route.active),
            *tile_expert_kernels(),
            gate_up_of(experts),
            down_of(experts),
            x,
            tokens,
            y,
            {},
            workspace,
            workspace + gathered_bytes(experts, choices)};
  step.run();
}

}  // namespace ktc::kernels
