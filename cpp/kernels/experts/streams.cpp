// The routed experts of a single token, kStreams bands at a time.
//
// An item of the first loop is 32 inner rows of one expert: two bands of gate rows and the two bands of up
// rows behind them. One of the second loop is a band of the result, for which it reads that band of kStreams
// experts at a time and adds their shares in the order of the experts' numbers.
#include "kernels/experts/streams.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/experts/matrix.hpp"
#include "kernels/experts/tables.hpp"
#include "kernels/linear/activations.hpp"
#include "kernels/linear/pieces.hpp"
#include "kernels/linear/streams.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

constexpr int64_t kPair = 2 * kBlockColumns;  // rows of an item of the first loop
static_assert(kPair == kStreams * kBandRows);

struct Step {
  const Experts& experts;
  const Route& route;
  const StreamKernels& streams;
  const ExpertKernels& kernels;
  Matrix gate_up, down;
  const uint8_t* x;
  uint8_t* inner;

  void gate_item(const runtime::NodeGrid& grid, int64_t item) const {
    const auto [active, block] = grid.at(item);
    const auto [next, next_block] = item + 1 < grid.items() ? grid.at(item + 1) : grid.at(item);
    const int64_t place = block * kPair, expert = route.expert[active];
    alignas(64) float values[kPair];
    StreamCall call{};
    call.count = kStreams;
    call.columns = gate_up.columns;
    call.sums = values;
    for (int s = 0; s < kStreams; ++s) {
      const int64_t row = s * kBandRows;
      call.band[s] = gate_up.band(expert, place + row);
      call.after[s] = gate_up.band(route.expert[next], next_block * kPair + row);
      call.x[s] = x;
      call.bias[s] = bias(gate_up, expert, place + row);
    }
    streams.multiply[static_cast<int>(gate_up.format)](call);
    uint8_t* to = inner + active * activation_record(down.columns) + block * int64_t{sizeof(ActivationBlock)};
    kernels.gate_blocks[static_cast<int>(experts.gate)](values, 1, to, 0);
  }

  // The 16 rows of y that are packed from `place` on.
  void down_item(int64_t place, float* y) const {
    constexpr int32_t own = 0;
    const int64_t record = activation_record(down.columns);
    alignas(64) float values[kPair], sum[kBandRows] = {};
    for (int64_t first = 0; first < route.active; first += kStreams) {
      StreamCall call{};
      call.count = static_cast<int>(std::min<int64_t>(kStreams, route.active - first));
      call.columns = down.columns;
      call.sums = values;
      for (int s = 0; s < call.count; ++s) {
        const int64_t active = first + s;
        // Behind the last experts, the first ones' next band.
        const bool more = first + kStreams < route.active, last = place + kBandRows >= down.rows;
        const int64_t next = more ? std::min(active + kStreams, route.active - 1) : s % route.active;
        call.band[s] = down.band(route.expert[active], place);
        call.after[s] = down.band(route.expert[next], more || last ? place : place + kBandRows);
        call.x[s] = inner + active * record;
        call.bias[s] = bias(down, route.expert[active], place);
      }
      streams.multiply[static_cast<int>(down.format)](call);
      for (int s = 0; s < call.count; ++s)
        kernels.accumulate(values + s * kBandRows, 1, kBandRows, &own, route.weight + first + s, sum);
    }
    std::memcpy(y + row(down, place), sum, sizeof(sum));
  }

  void run(float* y) const {
    runtime::Pool& pool = runtime::Pool::instance();
    const runtime::NodeGrid grid(route.active, pool.split(experts.inner / kBlockColumns));
    pool.parallel_for(grid.items(), std::max<int64_t>(1, kPieceBytes / (kStreams * gate_up.band_stride)),
                      [&](int64_t begin, int64_t end, int) {
                        for (int64_t item = begin; item < end; ++item) gate_item(grid, item);
                      });
    pool.parallel_for(experts.hidden / kBandRows,
                      std::max<int64_t>(1, kPieceBytes / (route.active * down.band_stride)),
                      [&](int64_t begin, int64_t end, int) {
                        for (int64_t item = begin; item < end; ++item) down_item(item * kBandRows, y);
                      });
  }

 private:
  // The row of the weight that is packed at `place`, the start of a band.
  static int64_t row(const Matrix& matrix, int64_t place) {
    const int64_t in_group = place % kBlockColumns;
    return matrix.row_at(place - in_group) + in_group;
  }
  static const float* bias(const Matrix& matrix, int64_t expert, int64_t place) {
    return matrix.bias ? matrix.bias + expert * matrix.rows + row(matrix, place) : nullptr;
  }
};

}  // namespace

bool experts_in_streams(const Experts& experts, const Route& route, int64_t tokens, int64_t chosen) {
  return tokens == 1 && route.active == chosen && !is_float(experts.gate_up_format) &&
         !is_float(experts.down_format) && stream_kernels() != nullptr;
}

void experts_streams(const Experts& experts, const Route& route, const uint8_t* x, uint8_t* inner, float* y) {
  const Step step{experts, route, *stream_kernels(), expert_kernels(), gate_up_of(experts), down_of(experts),
                  x,       inner};
  step.run(y);
}

}  // namespace ktc::kernels
