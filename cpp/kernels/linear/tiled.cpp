// Splits products on tiles over the pool: an item is a block of rows for a run of groups of tokens.
#include "kernels/linear/tiled.hpp"

#include <algorithm>

#include "kernels/linear/activations.hpp"
#include "kernels/scratch.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

constexpr int64_t kRows = 256, kGroups = 16;  // of an item at most: its activations and sums stay in L2
constexpr int64_t kPanelRows = kPanelBands * kBandRows;

// Items run over the rows for one run of groups after the other.
struct Grid {
  int64_t rows, groups;     // of an item
  int64_t row_items, runs;  // of the layer

  // `most` rows an item.
  Grid(int64_t all_rows, int64_t all_groups, int64_t most) : rows(most), groups(kGroups) {
    const int64_t threads = runtime::Pool::instance().threads(), wanted = threads == 1 ? 1 : 4 * threads;
    // Fewer rows cost nothing but turns through the activations; fewer tokens unpack weights more often.
    const auto items = [&] { return (all_rows + rows - 1) / rows * ((all_groups + groups - 1) / groups); };
    while (items() < wanted && rows > 2 * kPanelRows) rows /= 2;
    while (items() < wanted && groups > kGroups / 2) groups /= 2;
    if (items() < wanted && rows > kPanelRows) rows /= 2;
    while (items() < wanted && groups > kGroups / 4) groups /= 2;
    row_items = (all_rows + rows - 1) / rows;
    runs = (all_groups + groups - 1) / groups;
    groups = (all_groups + runs - 1) / runs;
    runs = (all_groups + groups - 1) / groups;
  }
  int64_t items() const { return row_items * runs; }
  int64_t first_row(int64_t item) const { return item % row_items * rows; }
  int64_t first_group(int64_t item) const { return item / row_items * groups; }
};

// What all items of a layer share.
struct Layer {
  const TileKernels& tiles;
  const PackedWeight& weight;
  const uint8_t* activations;
  int64_t tokens, band_stride, all_groups, group_bytes;
  int group_tokens;  // of each group but the last

  Layer(const TileKernels& t, const PackedWeight& w, const uint8_t* groups, int64_t count)
      : tiles(t),
        weight(w),
        activations(groups),
        tokens(count),
        band_stride(band_bytes(w.format, w.columns)),
        all_groups(tile_groups(count)),
        group_bytes(tile_group_bytes(w.columns)),
        group_tokens(static_cast<int>(tile_group_tokens(count))) {}

  static int64_t sums(int64_t rows, int64_t groups) {
    return (rows + kPanelRows - 1) / kPanelRows * ((groups + 1) / 2) * kTileSums;
  }
  const uint8_t* band(int64_t row) const { return weight.data + row / kBandRows * band_stride; }
  int64_t first_token(int64_t group) const { return group * group_tokens; }
  int tokens_of(int64_t group) const {
    return static_cast<int>(std::min<int64_t>(group_tokens, tokens - first_token(group)));
  }
  // Rows [row, row + rows), the first a multiple of kPanelRows, for `groups` groups from `group` on.
  void multiply(int64_t row, int64_t rows, int64_t group, int64_t groups, uint8_t* panel, float* to,
                const uint8_t* after) const {
    TileCall call{};
    call.weight = band(row);
    call.band_stride = band_stride;
    call.bands = (rows + kBandRows - 1) / kBandRows;
    call.columns = weight.columns;
    call.x = activations + group * group_bytes;
    call.groups = groups;
    call.tokens = group_tokens;
    call.panel = panel;
    call.sums = to;
    call.after = after;
    tiles.product[static_cast<int>(weight.format)](call);
  }
};

}  // namespace

void place_activations(const TileKernels& tiles, const float* x, int64_t x_stride, int64_t tokens,
                       int64_t columns, uint8_t* groups) {
  const int64_t each = tile_group_tokens(tokens), bytes = tile_group_bytes(columns);
  const int64_t grain = std::max<int64_t>(1, (16 << 10) / (columns * each));
  runtime::Pool::instance().parallel_for(tile_groups(tokens), grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * each, last = std::min(tokens, first + each);
      for (int64_t token = first; token < last; ++token)
        tiles.place(x + token * x_stride, columns, groups + group * bytes + (token - first) * 64);
    }
  });
}

void linear_tiled(const TileKernels& tiles, const PackedWeight& weight, const uint8_t* groups, int64_t tokens,
                  const float* bias, float* y, int64_t y_stride) {
  const Layer layer(tiles, weight, groups, tokens);
  const Grid grid(weight.rows, layer.all_groups, kRows);
  runtime::Pool::instance().parallel_for(grid.items(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = grid.first_row(item), rows = std::min(grid.rows, weight.rows - row);
      const int64_t first = grid.first_group(item), count = std::min(grid.groups, layer.all_groups - first);
      uint8_t* panel =
          worker_scratch().get(static_cast<size_t>(kTileWeightBytes + Layer::sums(rows, count) * 4));
      float* sums = reinterpret_cast<float*>(panel + kTileWeightBytes);
      const uint8_t* after = item + 1 < end ? layer.band(grid.first_row(item + 1)) : nullptr;
      layer.multiply(row, rows, first, count, panel, sums, after);
      for (int64_t group = 0; group < count; ++group) {
        const int64_t token = layer.first_token(first + group);
        for (int i = 0; i < layer.tokens_of(first + group); ++i) {
          tiles.store(sums + group * (kTileSums / 2) + i * kBandRows, (count + 1) / 2 * kTileSums, rows,
                      bias ? bias + row : nullptr, y + (token + i) * y_stride + row);
        }
      }
    }
  });
}

void linear_gated_tiled(const TileKernels& tiles, const PackedWeight& weight, const uint8_t* groups,
                        int64_t tokens, const float* bias, Gate gate, uint8_t* out) {
  const Layer layer(tiles, weight, groups, tokens);
  const int64_t inner = weight.rows / 2, out_bytes = tile_group_bytes(inner);
  const Grid grid(inner, layer.all_groups, kRows / 2);
  const auto gate_tile = tile_expert_kernels()->gate[static_cast<int>(gate)];
  runtime::Pool::instance().parallel_for(grid.items(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = grid.first_row(item), rows = std::min(grid.rows, inner - row);
      const int64_t first = grid.first_group(item), count = std::min(grid.groups, layer.all_groups - first);
      const int64_t half = Layer::sums(rows, count);
      uint8_t* panel = worker_scratch().get(static_cast<size_t>(kTileWeightBytes + 2 * half * 4));
      float* gates = reinterpret_cast<float*>(panel + kTileWeightBytes);
      float* ups = gates + half;
      layer.multiply(row, rows, first, count, panel, gates, layer.band(inner + row));
      const uint8_t* after = item + 1 < end ? layer.band(grid.first_row(item + 1)) : nullptr;
      layer.multiply(inner + row, rows, first, count, panel, ups, after);
      for (int64_t group = 0; group < count; ++group) {
        uint8_t* to = out + (first + group) * out_bytes + row / kBlockColumns * kTileBytes;
        for (int64_t block = 0; block < rows / kBlockColumns; ++block) {
          const int64_t from = block * ((count + 1) / 2) * kTileSums + group * (kTileSums / 2);
          const float* gate_bias = bias ? bias + row + block * kBlockColumns : nullptr;
          gate_tile(gates + from, ups + from, layer.tokens_of(first + group), gate_bias,
                    gate_bias ? gate_bias + inner : nullptr, to + block * kTileBytes);
        }
      }
    }
  });
}

}  // namespace ktc::kernels
