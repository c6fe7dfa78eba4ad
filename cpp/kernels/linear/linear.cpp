// Chooses the linear kernel and splits its work over the pool.
#include "kernels/linear/linear.hpp"

#include <algorithm>
#include <cstring>

#include "isa/isa.hpp"
#include "kernels/linear/activations.hpp"
#include "kernels/linear/pieces.hpp"
#include "kernels/linear/rounded.hpp"
#include "kernels/linear/streams.hpp"
#include "kernels/linear/tables.hpp"
#include "kernels/linear/tiled.hpp"
#include "kernels/scratch.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

#ifdef KTC_X86
constexpr isa::Dispatch<const IntegerKernels> kInteger{&integer_kernels_generic, &integer_kernels_avx2,
                                                       nullptr, &integer_kernels_avx512vnni};
constexpr isa::Dispatch<const FloatKernels> kFloat{&float_kernels_generic, &float_kernels_avx2,
                                                   &float_kernels_avx512, nullptr};
#else
constexpr isa::Dispatch<const IntegerKernels> kInteger{&integer_kernels_generic};
constexpr isa::Dispatch<const FloatKernels> kFloat{&float_kernels_generic};
#endif
#ifdef KTC_AMX
constexpr isa::Dispatch<const TileKernels> kTiles{nullptr, nullptr, nullptr, nullptr, &tile_kernels_amx};
#else
constexpr isa::Dispatch<const TileKernels> kTiles{};
#endif

// The kernel that rounds activations to bf16, or null. Where there are tiles, vdpbf16ps is slower than
// multiply-adds (measured on Sapphire Rapids: 0.7 to 0.9 of 1.3 TFLOPS on 16 cores).
FloatKernel rounded_product([[maybe_unused]] Format format, [[maybe_unused]] int64_t tokens) {
#ifdef KTC_X86
  const RoundedKernels& kernels = rounded_kernels_avx512vnni;
  if (isa::current() == isa::Level::avx512vnni && tokens >= kernels.least_tokens)
    return kernels.multiply[static_cast<int>(format)];
#endif
  return nullptr;
}

constexpr int64_t kFewTokens = 4;    // so many take no longer than the weights' way from memory
constexpr int64_t kSomeTokens = 32;  // so many are not split

// Panels of bands times runs of tokens: the grid that many tokens are split by.
struct Grid {
  int64_t panels, runs, run_tokens;
};

// `record` is the bytes of a token's activations.
Grid make_grid(int64_t bands, int64_t tokens, int64_t record, int threads, int64_t run_bytes = kRunBytes,
               int64_t panel_bands = kPanelBands) {
  const int64_t panels = (bands + panel_bands - 1) / panel_bands;
  // Few panels: split the tokens too, though every run reads the weight again.
  const int64_t wanted = std::max<int64_t>(1, (int64_t{4} * threads + panels - 1) / panels);
  const int64_t most =
      std::min(run_tokens(tokens, record, run_bytes), std::max<int64_t>(48, (tokens + wanted - 1) / wanted));
  // Runs of about the same length, so that threads have about the same to do.
  const int64_t runs = (tokens + most - 1) / most, run = (tokens + runs - 1) / runs;
  const int64_t rounded = std::min(tokens, (run + 15) / 16 * 16);
  return {panels, (tokens + rounded - 1) / rounded, rounded};
}

LinearCall make_call(const PackedWeight& weight, const float* bias, float* y, int64_t y_stride) {
  LinearCall call{};
  call.weight = weight.data;
  call.rows = weight.rows;
  call.columns = weight.columns;
  call.band_stride = band_bytes(weight.format, weight.columns);
  call.bias = bias;
  call.y = y;
  call.y_stride = y_stride;
  return call;
}

// One token, kStreams bands at a time.
void linear_streams(const PackedWeight& weight, const StreamKernels& streams, const uint8_t* record,
                    const float* bias, float* y) {
  const int64_t bands = weight.bands(), stride = band_bytes(weight.format, weight.columns);
  runtime::Pool& pool = runtime::Pool::instance();
  // Fewer places at once where threads would have too few pieces to end at about the same time.
  const int64_t share = std::clamp<int64_t>(bands / (4 * pool.threads()), 1, kStreams);
  const int64_t grain = std::max<int64_t>(1, kPieceBytes / stride / share) * share;
  pool.parallel_for(bands, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t first = begin; first < end; first += kStreams) {
      const int64_t count = std::min<int64_t>(kStreams, end - first);
      alignas(64) float sums[kStreams * kBandRows], biases[kStreams * kBandRows] = {};
      const int64_t rows = std::min(count * kBandRows, weight.rows - first * kBandRows);
      if (bias) std::memcpy(biases, bias + first * kBandRows, static_cast<size_t>(rows) * 4);
      StreamCall call{};
      call.count = static_cast<int>(count);
      call.columns = weight.columns;
      call.sums = sums;
      for (int64_t s = 0; s < count; ++s) {
        const int64_t band = first + s;
        call.band[s] = weight.data + band * stride;
        call.after[s] = weight.data + std::min(band + kStreams, bands - 1) * stride;
        call.x[s] = record;
        call.bias[s] = bias ? biases + s * kBandRows : nullptr;
      }
      streams.multiply[static_cast<int>(weight.format)](call);
      std::memcpy(y + first * kBandRows, sums, static_cast<size_t>(rows) * 4);
    }
  });
}

void linear_floats(const PackedWeight& weight, const float* x, int64_t x_stride, int64_t tokens,
                   const float* bias, float* y, int64_t y_stride) {
  LinearCall call = make_call(weight, bias, y, y_stride);
  call.x = reinterpret_cast<const uint8_t*>(x);
  call.x_stride = x_stride * 4;
  const FloatKernel rounded = rounded_product(weight.format, tokens);
  const FloatKernel multiply = float_product(weight.format, tokens);
  runtime::Pool& pool = runtime::Pool::instance();
  const int64_t bands = weight.bands();
  if (tokens <= kFewTokens) {
    const int64_t least = bands >= 4 * pool.threads() ? 2 : 1;  // a router has few
    pool.parallel_for(bands, std::max<int64_t>(least, kPieceBytes / call.band_stride),
                      [&](int64_t begin, int64_t end, int) { multiply(call, begin, end, 0, tokens); });
    return;
  }
  // Those that round take the activations piece by piece, so that runs may be long.
  const int64_t panel =
      rounded ? std::clamp<int64_t>(bands / (8 * pool.threads()) * 2, 2, kRoundedBands) : kPanelBands;
  const int64_t record = rounded ? std::min<int64_t>(call.x_stride, 1024) : call.x_stride;
  const Grid grid = make_grid(bands, tokens, record, pool.threads(), kRunBytes, panel);
  pool.parallel_for(grid.panels * grid.runs, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i / grid.runs * panel, token = i % grid.runs * grid.run_tokens;
      multiply(call, band, std::min(band + panel, bands), token, std::min(token + grid.run_tokens, tokens));
    }
  });
}

}  // namespace

const IntegerKernels& integer_kernels() {
  return *kInteger.pick();
}

const FloatKernels& float_kernels() {
  return *kFloat.pick();
}

FloatKernel float_product(Format format, int64_t tokens) {
  if (const FloatKernel rounded = rounded_product(format, tokens)) return rounded;
#ifdef KTC_X86
  const RoundedKernels& kernels = rounded_kernels_avx512vnni;
  const FloatKernel few = kernels.few[static_cast<int>(format)];
  if (few && isa::current() >= isa::Level::avx512vnni && tokens < kernels.least_tokens) return few;
#endif
  return kFloat.pick()->multiply[static_cast<int>(format)];
}

const TileKernels* tile_kernels(int64_t tokens) {
  const TileKernels* tiles = kTiles.pick();
  return tiles && tokens >= tiles->least_tokens ? tiles : nullptr;
}

int64_t activation_bytes(int64_t tokens, int64_t columns) {
  const int64_t records = tokens * activation_record(columns);
  return kTiles.pick() ? std::max(records, tiled_bytes(tokens, columns)) : records;
}

namespace {

// Where the activations of tokens go, and how.
struct Records {
  uint8_t* data;
  int64_t tokens, columns;
  bool groups;

  void quantize(const IntegerKernels& kernels, const float* row, int64_t token) const {
    if (groups)
      kernels.quantize_groups(row, columns, data + token * kGroupBytes, tokens * kGroupBytes);
    else
      kernels.quantize(row, columns, data + token * activation_record(columns));
  }
  int64_t grain() const { return std::max<int64_t>(1, (16 << 10) / columns); }
};

}  // namespace

void quantize_activations(Format format, const float* x, int64_t x_stride, int64_t tokens, int64_t columns,
                          uint8_t* records) {
  quantize_activations(x, x_stride, tokens, columns, records, tile_kernels(tokens),
                       integer_kernels().groups(format, tokens));
}

void quantize_activations(const float* x, int64_t x_stride, int64_t tokens, int64_t columns, uint8_t* records,
                          const TileKernels* tiles, bool groups) {
  if (tiles) return place_activations(*tiles, x, x_stride, tokens, columns, records);
  const IntegerKernels& kernels = integer_kernels();
  const Records to{records, tokens, columns, groups};
  runtime::Pool::instance().parallel_for(tokens, to.grain(), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) to.quantize(kernels, x + i * x_stride, i);
  });
}

bool quantize_made(Format format, const RowMaker& maker, int64_t tokens, int64_t columns, uint8_t* records) {
  if (tile_kernels(tokens)) return false;
  const IntegerKernels& kernels = integer_kernels();
  const Records to{records, tokens, columns, kernels.groups(format, tokens)};
  runtime::Pool::instance().parallel_for(tokens, to.grain(), [&](int64_t begin, int64_t end, int) {
    float* row = reinterpret_cast<float*>(worker_scratch().get(static_cast<size_t>(columns) * sizeof(float)));
    for (int64_t i = begin; i < end; ++i) {
      maker.make(maker.context, i, row);
      to.quantize(kernels, row, i);
    }
  });
  return true;
}

void linear_quantized(const PackedWeight& weight, const uint8_t* records, int64_t tokens, const float* bias,
                      float* y, int64_t y_stride) {
  const TileKernels* tiles = tile_kernels(tokens);
  if (tiles) return linear_tiled(*tiles, weight, records, tokens, bias, y, y_stride);
  const StreamKernels* streams = tokens == 1 ? stream_kernels() : nullptr;
  if (streams) return linear_streams(weight, *streams, records, bias, y);
  LinearCall call = make_call(weight, bias, y, y_stride);
  call.x = records;
  call.x_stride = activation_record(weight.columns);
  const IntegerKernels& kernels = integer_kernels();
  runtime::Pool& pool = runtime::Pool::instance();
  const int64_t bands = weight.bands();
  call.groups = kernels.groups(weight.format, tokens) ? tokens * kGroupBytes : 0;
  if (tokens <= kSomeTokens) {
    const int64_t band_products = kBandRows * weight.columns * tokens;
    const int64_t grain = std::min(kPieceBytes / call.band_stride, kPieceProducts / band_products);
    pool.parallel_for(bands, std::max<int64_t>(1, grain), [&](int64_t begin, int64_t end, int) {
      uint8_t* scratch = worker_scratch().get(kPanelBytes);
      kernels.multiply(weight.format, call, begin, end, 0, tokens, scratch);
    });
    return;
  }
  const Grid grid = make_grid(bands, tokens, call.x_stride, pool.threads());
  const int64_t grain = std::max<int64_t>(
      1, kPieceProducts / (kPanelBands * kBandRows * weight.columns * std::min(tokens, grid.run_tokens)));
  pool.parallel_for(grid.panels * grid.runs, grain, [&](int64_t begin, int64_t end, int) {
    uint8_t* scratch = worker_scratch().get(kPanelBytes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i % grid.panels * kPanelBands, token = i / grid.panels * grid.run_tokens;
      const int64_t last_band = std::min(band + kPanelBands, bands);
      const int64_t last_token = std::min(token + grid.run_tokens, tokens);
      kernels.multiply(weight.format, call, band, last_band, token, last_token, scratch);
    }
  });
}

void linear(const PackedWeight& weight, const float* x, int64_t x_stride, int64_t tokens, const float* bias,
            float* y, int64_t y_stride) {
  if (tokens <= 0) return;
  if (is_float(weight.format)) return linear_floats(weight, x, x_stride, tokens, bias, y, y_stride);
  uint8_t* records = caller_scratch().get(static_cast<size_t>(activation_bytes(tokens, weight.columns)));
  quantize_activations(weight.format, x, x_stride, tokens, weight.columns, records);
  linear_quantized(weight, records, tokens, bias, y, y_stride);
}

}  // namespace ktc::kernels
