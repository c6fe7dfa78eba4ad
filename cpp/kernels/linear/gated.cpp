// Splits gated products over the pool: an item is 32 gate rows and the 32 up rows that they meet, for a run
// of tokens; or 256 of each, where what follows takes its activations in groups.
#include "kernels/linear/gated.hpp"

#include <algorithm>

#include "kernels/linear/activations.hpp"
#include "kernels/linear/pieces.hpp"
#include "kernels/linear/tables.hpp"
#include "kernels/linear/tiled.hpp"
#include "kernels/scratch.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

constexpr int64_t kBands = kBlockColumns / kBandRows;  // of an item, gate and up each
constexpr int64_t kPair = 2 * kBlockColumns;           // floats of a token in an item
constexpr int64_t kLeastRun = 48;                      // tokens for which a weight is worth decoding

// What an item keeps of a token: the values of a block, and of groups what became of them.
constexpr int64_t value_bytes(bool groups) {
  return 4 * (kPair + (groups ? kGroupColumns : 0));
}

struct Gated {
  const PackedWeight& weight;
  int64_t band_stride, record, out_record, tokens, run, blocks;
  int64_t span;          // blocks of an item: 1, or those of a group
  bool grouped, groups;  // what is read is in groups, what is written
  const uint8_t* records;
  const float* bias;
  Gate gate;
  uint8_t* out;

  const uint8_t* band(int64_t index) const { return weight.data + index * band_stride; }

  void multiply(const LinearCall& call, int64_t count, uint8_t* panel) const {
    integer_kernels().multiply(weight.format, call, 0, kBands, 0, count, panel);
  }

  void item(int64_t index) const {
    const int64_t spans = (blocks + span - 1) / span, part = index % spans, first = index / spans * run;
    const int64_t count = std::min(run, tokens - first);
    const int64_t begin = part * span, end = std::min(begin + span, blocks);
    uint8_t* panel = worker_scratch().get(static_cast<size_t>(kPanelBytes + count * value_bytes(groups)));
    float *values = reinterpret_cast<float*>(panel + kPanelBytes), *gated = values + count * kPair;
    for (int64_t block = begin; block < end; ++block)
      gate_block(block, first, count, panel, values, gated + (block - begin) * kBlockColumns);
    if (!groups) return;
    for (int64_t i = 0; i < count; ++i) {
      integer_kernels().quantize_groups(gated + i * kGroupColumns, (end - begin) * kBlockColumns,
                                        out + (part * tokens + first + i) * kGroupBytes, 0);
    }
  }

  // 32 gate rows, their up rows and what becomes of both, for `count` tokens: a block of activations a token,
  // or floats to `gated`, kGroupColumns apart.
  void gate_block(int64_t block, int64_t first, int64_t count, uint8_t* panel, float* values,
                  float* gated) const {
    const int64_t inner = weight.rows / 2, up = inner / kBandRows + block * kBands;
    LinearCall call{};
    call.rows = kBlockColumns;
    call.columns = weight.columns;
    call.band_stride = band_stride;
    call.x = records + first * (grouped ? kGroupBytes : record);
    call.x_stride = record;
    call.groups = grouped ? tokens * kGroupBytes : 0;
    call.y_stride = kPair;
    call.weight = band(block * kBands);
    call.after = band(up);
    call.bias = bias ? bias + block * kBlockColumns : nullptr;
    call.y = values;
    multiply(call, count, panel);
    call.after = block + 1 < blocks ? band((block + 1) * kBands) : nullptr;
    call.weight = band(up);
    call.bias = bias ? bias + inner + block * kBlockColumns : nullptr;
    call.y += kBlockColumns;
    multiply(call, count, panel);

    uint8_t* to = out + first * out_record + block * int64_t{sizeof(ActivationBlock)};
    const ExpertKernels& kernels = expert_kernels();
    const int kind = static_cast<int>(gate);
    if (groups)
      return kernels.gate_floats[kind](values, count, reinterpret_cast<uint8_t*>(gated), kGroupColumns * 4);
    kernels.gate_blocks[kind](values, count, to, out_record);
  }
};

}  // namespace

bool can_gate(const PackedWeight& weight) {
  return !is_float(weight.format) && weight.rows > 0 && weight.rows % kPair == 0;
}

void linear_gated(const PackedWeight& weight, const uint8_t* records, int64_t tokens, const float* bias,
                  Gate gate, Format next, uint8_t* out) {
  if (tokens <= 0) return;
  if (const TileKernels* tiles = tile_kernels(tokens))
    return linear_gated_tiled(*tiles, weight, records, tokens, bias, gate, out);
  const int64_t inner = weight.rows / 2, blocks = inner / kBlockColumns;
  const int64_t record = activation_record(weight.columns);
  runtime::Pool& pool = runtime::Pool::instance();
  // Few items: split the tokens too. Their activations and the values of an item should stay in L2.
  const bool grouped = integer_kernels().groups(weight.format, tokens);
  const bool groups = integer_kernels().groups(next, tokens);
  const int64_t span = groups ? kGroupColumns / kBlockColumns : 1, spans = (blocks + span - 1) / span;
  const int64_t most = run_tokens(tokens, record + value_bytes(groups));
  const int64_t wanted = (int64_t{4} * pool.threads() + spans - 1) / spans;
  const int64_t runs = std::max((tokens + most - 1) / most, std::min(wanted, tokens / kLeastRun));
  const int64_t run = ((tokens + runs - 1) / runs + 15) / 16 * 16;
  const Gated step{weight,  band_bytes(weight.format, weight.columns),
                   record,  activation_record(inner),
                   tokens,  run,
                   blocks,  span,
                   grouped, groups,
                   records, bias,
                   gate,    out};
  const int64_t products = kPair * span * weight.columns * std::min(run, tokens);
  pool.parallel_for(spans * ((tokens + run - 1) / run), std::max<int64_t>(1, kPieceProducts / products),
                    [&](int64_t begin, int64_t end, int) {
                      for (int64_t index = begin; index < end; ++index) step.item(index);
                    });
}

}  // namespace ktc::kernels
