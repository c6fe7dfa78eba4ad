// Splits gated products over the pool: an item is 32 gate rows and the 32 up rows that they meet, for a run
// of tokens.
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

struct Gated {
  const PackedWeight& weight;
  int64_t band_stride, record, out_record, tokens, run, blocks;
  const uint8_t* records;
  const float* bias;
  Gate gate;
  uint8_t* out;

  const uint8_t* band(int64_t index) const { return weight.data + index * band_stride; }

  void multiply(const LinearCall& call, int64_t count, uint8_t* panel) const {
    integer_kernels().multiply(weight.format, call, 0, kBands, 0, count, panel);
  }

  void item(int64_t index) const {
    const int64_t block = index % blocks, first = index / blocks * run;
    const int64_t count = std::min(run, tokens - first), inner = weight.rows / 2,
                  up = inner / kBandRows + block * kBands;
    uint8_t* panel = worker_scratch().get(static_cast<size_t>(kPanelBytes + count * kPair * 4));
    float* values = reinterpret_cast<float*>(panel + kPanelBytes);
    LinearCall call{};
    call.rows = kBlockColumns;
    call.columns = weight.columns;
    call.band_stride = band_stride;
    call.x = records + first * record;
    call.x_stride = record;
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
    expert_kernels().gate_blocks[static_cast<int>(gate)](values, count, to, out_record);
  }
};

}  // namespace

bool can_gate(const PackedWeight& weight) {
  return !is_float(weight.format) && weight.rows > 0 && weight.rows % kPair == 0;
}

void linear_gated(const PackedWeight& weight, const uint8_t* records, int64_t tokens, const float* bias,
                  Gate gate, uint8_t* out) {
  if (tokens <= 0) return;
  if (const TileKernels* tiles = tile_kernels(tokens))
    return linear_gated_tiled(*tiles, weight, records, tokens, bias, gate, out);
  const int64_t inner = weight.rows / 2, blocks = inner / kBlockColumns;
  const int64_t record = activation_record(weight.columns);
  runtime::Pool& pool = runtime::Pool::instance();
  // Few items: split the tokens too. Their activations and the values of an item should stay in L2.
  const int64_t most = run_tokens(tokens, record + kPair * 4);
  const int64_t wanted = (int64_t{4} * pool.threads() + blocks - 1) / blocks;
  const int64_t runs = std::max((tokens + most - 1) / most, std::min(wanted, tokens / kLeastRun));
  const int64_t run = ((tokens + runs - 1) / runs + 15) / 16 * 16;
  const Gated step{weight,
                   band_bytes(weight.format, weight.columns),
                   record,
                   activation_record(inner),
                   tokens,
                   run,
                   blocks,
                   records,
                   bias,
                   gate,
                   out};
  const int64_t products = kPair * weight.columns * std::min(run, tokens);
  pool.parallel_for(blocks * ((tokens + run - 1) / run), std::max<int64_t>(1, kPieceProducts / products),
                    [&](int64_t begin, int64_t end, int) {
                      for (int64_t index = begin; index < end; ++index) step.item(index);
                    });
}

}  // namespace ktc::kernels
