// Runs the experts in two parallel loops: gate and up with what follows them, then down with the weighted
// sum.
//
// The first loop's items are 32 inner rows of one expert, gate and up, for all tokens of that expert; an item
// ends with the tokens' blocks of 32 activations for the down matrix. The second loop's items own rows of the
// result: they go through the experts and add each one's share for its tokens, so that no two threads meet in
// a sum and its order is always the same.
#include "kernels/experts/experts.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/experts/matrix.hpp"
#include "kernels/experts/route.hpp"
#include "kernels/experts/streams.hpp"
#include "kernels/experts/tiles.hpp"
#include "kernels/linear/activations.hpp"
#include "kernels/linear/linear.hpp"
#include "kernels/linear/pieces.hpp"
#include "kernels/linear/rounded.hpp"
#include "kernels/linear/tables.hpp"
#include "kernels/packed/pack.hpp"
#include "kernels/scratch.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

// More tokens are computed in parts, so that the workspace is bounded.
constexpr int64_t kPartTokens = 4096;
// What the sums of an item of the second loop may take. Fewer rows an item would read the activations of all
// experts more often.
constexpr int64_t kSumBytes = 512 << 10;
// Groups of activations that are copied for an item of the first loop at most.
constexpr int64_t kGatherBytes = 4 << 20;
constexpr int64_t kGatherAhead = 4;
constexpr int64_t kManyItems = 16;                // of a thread: so many end at about the same time
constexpr int64_t kGateRows = 2 * kBlockColumns;  // 32 gate rows, then the up rows that belong to them

// Bytes of the activations of one token.
int64_t record(const Matrix& matrix) {
  return matrix.integers() ? activation_record(matrix.columns) : 4 * matrix.columns;
}

// A call for the `count` rows of a matrix packed from `place` on, as if they were a weight of their own;
// their biases, if there are any, go to `biases`.
LinearCall make_call(const Matrix& matrix, int64_t expert, int64_t place, int64_t count, float* y,
                     float* biases) {
  LinearCall call{};
  call.weight = matrix.band(expert, place);
  call.rows = count;
  call.columns = matrix.columns;
  call.band_stride = matrix.band_stride;
  call.x_stride = record(matrix);
  if (matrix.bias) {
    for (int64_t i = 0; i < count; i += kBlockColumns) {
      const float* bias = matrix.bias + expert * matrix.rows + matrix.row_at(place + i);
      std::memcpy(biases + i, bias, kBlockColumns * 4);
    }
    call.bias = biases;
  }
  call.y = y;
  call.y_stride = count;
  return call;
}

// Items to take at once, when one reads `item_rows` rows of a matrix for `tokens` tokens.
int64_t grain(const Matrix& matrix, int64_t item_rows, int64_t tokens) {
  const int64_t bytes = item_rows / kBandRows * matrix.band_stride;
  const int64_t products = item_rows * matrix.columns * tokens;
  return std::max<int64_t>(1, std::min(kPieceBytes / bytes, kPieceProducts / products));
}

// `tokens` of the `expert_tokens` tokens of an expert, whose number chooses the kernel of float weights.
void multiply(const Matrix& matrix, const LinearCall& call, int64_t tokens, int64_t expert_tokens,
              uint8_t* panel) {
  const int64_t bands = call.rows / kBandRows;
  if (matrix.integers()) {
    integer_kernels().multiply(matrix.format, call, 0, bands, 0, tokens, panel);
  } else {
    float_product(matrix.format, expert_tokens)(call, 0, bands, 0, tokens);
  }
}

struct Step {
  const Experts& experts;
  const ExpertKernels& kernels;
  Matrix gate_up, down;
  Route route;
  int64_t tokens, chosen;
  const uint8_t* x;            // what gate_up reads, by token
  uint8_t* inner;              // what down reads, by choice
  bool x_groups, down_groups;  // whether these are ActivationGroups

  int64_t choices(int64_t active) const { return route.begin[active + 1] - route.begin[active]; }
  // Tokens of one expert, as far as the cost of an item is concerned.
  int64_t mean_tokens() const { return std::max<int64_t>(1, tokens * chosen / route.active); }
  int64_t run(int64_t count, const Matrix& matrix) const { return run_tokens(count, record(matrix)); }

  // The activations of an expert for down, in groups: an expert's lie together, the first ones of all its
  // tokens, then the second ones, and so on.
  uint8_t* inner_groups(int64_t active) const {
    return inner + route.begin[active] * inner_parts() * kGroupBytes;
  }
  int64_t inner_parts() const { return (experts.inner + kGroupColumns - 1) / kGroupColumns; }

  // Gates 32 rows of `count` tokens, [token][gate, up], into the activations that down reads from `out` on.
  void gate_rows(float* values, int64_t count, uint8_t* out) const {
    const int gate = static_cast<int>(experts.gate);
    if (!down.integers()) return kernels.gate_floats[gate](values, count, out, record(down));
    kernels.gate_blocks[gate](values, count, out, record(down));
  }

  // Blocks of 32 inner rows of an item of the first loop: one, or those of a group of activations.
  int64_t span() const { return down_groups ? kGroupColumns / kBlockColumns : 1; }

  // Items are numbered by NUMA node: each takes its blocks of every expert. `again` says that this thread has
  // just done another one of the same expert.
  void gate_item(const runtime::NodeGrid& grid, int64_t item, bool again) const {
    const auto [active, part] = grid.at(item);
    const int64_t count = choices(active);
    const uint8_t* after = nullptr;
    if (item + 1 < grid.items()) {
      const auto [next, from] = grid.at(item + 1);
      if (next != active) after = gate_up.band(route.expert[next], from * span() * kGateRows);
    }
    const int64_t most = x_groups ? std::max<int64_t>(1, kGatherBytes / record(gate_up)) : count;
    for (int64_t first = 0; first < count; first += most) {
      const bool gathered = again && count <= most;
      gate_tokens(active, part, first, std::min(most, count - first), gathered, after);
    }
  }

  // The `count` tokens of an expert from its `begin`th on; whether their groups are in the scratch already.
  void gate_tokens(int64_t active, int64_t part, int64_t begin, int64_t count, bool gathered,
                   const uint8_t* after) const {
    const int64_t run = this->run(count, gate_up), all = choices(active),
                  choice = route.begin[active] + begin;
    const int64_t floats = run * kGateRows + (down_groups ? count * kGroupColumns : 0);
    const int64_t own_bytes = x_groups ? count * record(gate_up) : 0;
    uint8_t* panel = worker_scratch().get(static_cast<size_t>(kPanelBytes + own_bytes + floats * 4));
    uint8_t* own = panel + kPanelBytes;
    float *values = reinterpret_cast<float*>(own + own_bytes), *gated = values + run * kGateRows;
    if (x_groups && !gathered) gather(choice, count, own);

    alignas(64) float biases[kGateRows];
    const int64_t block_bytes = down.integers() ? int64_t{sizeof(ActivationBlock)} : 4 * kBlockColumns;
    const int64_t first_block = part * span();
    const int64_t blocks = std::min(span(), experts.inner / kBlockColumns - first_block);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t block = first_block + i;
      LinearCall call =
          make_call(gate_up, route.expert[active], block * kGateRows, kGateRows, values, biases);
      call.groups = x_groups ? count * kGroupBytes : 0;
      if (i + 1 == blocks) call.after = after;
      for (int64_t first = 0; first < count; first += run) {
        const int64_t here = std::min(run, count - first);
        call.x = x_groups ? own + first * kGroupBytes : x;
        call.order = x_groups ? nullptr : route.token + choice + first;
        multiply(gate_up, call, here, all, panel);
        if (down_groups) {
          float* to = gated + first * kGroupColumns + i * kBlockColumns;
          kernels.gate_floats[static_cast<int>(experts.gate)](values, here, reinterpret_cast<uint8_t*>(to),
                                                              4 * kGroupColumns);
        } else {
          gate_rows(values, here, inner + (choice + first) * record(down) + block * block_bytes);
        }
      }
    }
    for (int64_t i = 0; down_groups && i < count; ++i) {
      integer_kernels().quantize_groups(gated + i * kGroupColumns, blocks * kBlockColumns,
                                        inner_groups(active) + (part * all + begin + i) * kGroupBytes, 0);
    }
  }

  // The groups of `count` choices' tokens, one behind the other as the kernels want them.
  void gather(int64_t choice, int64_t count, uint8_t* to) const {
    for (int64_t column = 0; column < experts.hidden; column += kGroupColumns) {
      const uint8_t* from = x + column / kGroupColumns * tokens * kGroupBytes;
      const auto group = [&](int64_t i) { return from + route.token[choice + i] * kGroupBytes; };
      for (int64_t i = 0; i < count; ++i, to += kGroupBytes) {
        for (int64_t line = 0; line < kGroupBytes; line += 64)  // they are anywhere, and in L3 at best
          __builtin_prefetch(group(std::min(i + kGatherAhead, count - 1)) + line);
        std::memcpy(to, group(i), kGroupBytes);
      }
    }
  }

  // The rows of y that are packed in [place, place + rows).
  void down_item(int64_t place, int64_t rows, float* y) const {
    int64_t run = 0;
    for (int64_t active = 0; active < route.active; ++active) run = std::max(run, choices(active));
    run = this->run(run, down);
    uint8_t* panel = worker_scratch().get(static_cast<size_t>(kPanelBytes + (run + tokens + 1) * rows * 4));
    float* values = reinterpret_cast<float*>(panel + kPanelBytes);
    float *sums = values + run * rows, *biases = sums + tokens * rows;
    std::memset(sums, 0, static_cast<size_t>(tokens * rows) * 4);

    for (int64_t active = 0; active < route.active; ++active) {
      const int64_t count = choices(active);
      LinearCall call = make_call(down, route.expert[active], place, rows, values, biases);
      if (active + 1 < route.active) {
        call.after = down.band(route.expert[active + 1], place);
      } else if (place + rows < experts.hidden) {
        call.after = down.band(route.expert[0], place + rows);
      }
      if (down_groups) {
        const int64_t next = (active + 1) % route.active;
        call.groups = count * kGroupBytes;
        call.soon = inner_groups(next);
        call.soon_bytes = choices(next) * inner_parts() * kGroupBytes;
      }
      for (int64_t first = 0; first < count; first += run) {
        const int64_t here = std::min(run, count - first), choice = route.begin[active] + first;
        call.x = down_groups ? inner_groups(active) + first * kGroupBytes : inner + choice * record(down);
        multiply(down, call, here, count, panel);
        kernels.accumulate(values, here, rows, route.token + choice, route.weight + choice, sums);
      }
    }
    for (int64_t i = 0; i < rows; i += kBlockColumns) {
      float* to = y + down.row_at(place + i);
      for (int64_t token = 0; token < tokens; ++token)
        std::memcpy(to + token * experts.hidden, sums + token * rows + i, kBlockColumns * 4);
    }
  }

  // Rows of an item of the second loop. Memory is the faster the more rows of an expert are read in a run,
  // because the processor's prefetching starts anew with each (34 GB/s in one run, 24 in runs of 38 KB); but
  // threads want a few items each, and sums should stay in L2.
  int64_t down_rows(int threads) const {
    const int64_t most = std::min(experts.hidden / (4 * threads), kSumBytes / (4 * tokens));
    return std::clamp<int64_t>(most / kBlockColumns * kBlockColumns, kBlockColumns, experts.hidden);
  }

  void run(float* y) const {
    runtime::Pool& pool = runtime::Pool::instance();
    const int64_t parts = (experts.inner / kBlockColumns + span() - 1) / span();
    const runtime::NodeGrid grid(route.active, pool.split(parts));
    // All of an expert's at once, where threads still have many to take: its tokens are gathered once.
    const int64_t least = x_groups && route.active >= kManyItems * pool.threads() ? parts : 1;
    pool.parallel_for(grid.items(), std::max(least, grain(gate_up, kGateRows * span(), mean_tokens())),
                      [&](int64_t begin, int64_t end, int) {
                        for (int64_t item = begin; item < end; ++item) {
                          const bool again = item > begin && grid.at(item).outer == grid.at(item - 1).outer;
                          gate_item(grid, item, again);
                        }
                      });
    const int64_t rows = down_rows(pool.threads());
    const int64_t piece = grain(down, rows, mean_tokens() * route.active);
    pool.parallel_for((experts.hidden + rows - 1) / rows, piece, [&](int64_t begin, int64_t end, int) {
      for (int64_t item = begin; item < end; ++item)
        down_item(item * rows, std::min(rows, experts.hidden - item * rows), y);
    });
  }
};

int64_t round_up(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// What a call keeps in its scratch, one behind the other; on tiles, activations take as much as they need.
struct Workspace {
  int64_t route, x, inner, tiles;

  Workspace(const Experts& e, const Matrix& gate_up, const Matrix& down, int64_t tokens, int64_t chosen)
      : route(round_up(route_bytes(e.count, tokens, chosen))),
        x(gate_up.integers() ? tokens * record(gate_up) : 0),
        inner(tokens * chosen * record(down)),
        tiles(experts_on_tiles(e, tokens * chosen) ? experts_tiles_workspace(e, tokens, chosen) : 0) {}

  int64_t bytes() const { return route + std::max(x + inner, tiles); }
};

}  // namespace

void check_experts(const Experts& experts) {
  check_shape(experts.gate_up_format, 2 * experts.inner, experts.hidden);
  check_shape(experts.down_format, experts.hidden, experts.inner);
  if (experts.inner % kBlockColumns || experts.hidden % kBlockColumns || experts.count < 1 ||
      experts.count >= int64_t{1} << 31) {
    throw std::invalid_argument(
        "experts have at least one expert and multiples of 32 rows and columns, not " +
        std::to_string(experts.count) + " experts of " + std::to_string(experts.hidden) + " x " +
        std::to_string(experts.inner));
  }
}

int64_t experts_workspace(const Experts& experts, int64_t tokens, int64_t chosen) {
  return Workspace(experts, gate_up_of(experts), down_of(experts), std::min(tokens, kPartTokens), chosen)
      .bytes();
}

void experts(const Experts& experts, const float* x, const int64_t* indices, const float* weights,
             int64_t tokens, int64_t chosen, float* y) {
  for (int64_t i = 0; i < tokens * chosen; ++i) {
    if (indices[i] < 0 || indices[i] >= experts.count) {
      throw std::out_of_range("expert " + std::to_string(indices[i]) + " is not in 0.." +
                              std::to_string(experts.count - 1));
    }
  }
  if (chosen == 0) std::memset(y, 0, static_cast<size_t>(tokens * experts.hidden) * 4);
  if (tokens <= 0 || chosen == 0) return;
  const Matrix gate_up = gate_up_of(experts), down = down_of(experts);
  for (int64_t first = 0; first < tokens; first += kPartTokens) {
    const int64_t part = std::min(kPartTokens, tokens - first);
    const Workspace space(experts, gate_up, down, part, chosen);
    uint8_t* memory = caller_scratch().get(static_cast<size_t>(space.bytes()));
    uint8_t* records = memory + space.route;
    const float* from = x + first * experts.hidden;
    const Route route =
        make_route(indices + first * chosen, weights + first * chosen, experts.count, part, chosen, memory);
    float* to = y + first * experts.hidden;
    if (experts_on_tiles(experts, part * chosen / route.active)) {
      experts_tiles(experts, route, from, part, chosen, to, records);
      continue;
    }
    const int64_t mean = part * chosen / route.active;
    const bool x_groups = integer_kernels().groups(gate_up.format, mean);
    if (gate_up.integers())
      quantize_activations(from, experts.hidden, part, experts.hidden, records, nullptr, x_groups);
    else
      records = const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(from));
    if (experts_in_streams(experts, route, part, chosen)) {
      experts_streams(experts, route, records, memory + space.route + space.x, to);
      continue;
    }
    const Step step{experts,
                    expert_kernels(),
                    gate_up,
                    down,
                    route,
                    part,
                    chosen,
                    records,
                    memory + space.route + space.x,
                    x_groups,
                    integer_kernels().groups(down.format, mean)};
    step.run(to);
  }
}

}  // namespace ktc::kernels
