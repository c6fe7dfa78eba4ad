// Writes the cache of latents and decides, sequence by sequence, whether attention absorbs or expands.
#include "kernels/latent/latent.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa/isa.hpp"
#include "kernels/attention/rounded.hpp"
#include "kernels/latent/parts.hpp"
#include "kernels/packed/pack.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

#ifdef KTC_X86
constexpr isa::Dispatch<const LatentKernels> kKernels{&latent_kernels_generic, &latent_kernels_avx2,
                                                      &latent_kernels_avx512, nullptr};
#else
constexpr isa::Dispatch<const LatentKernels> kKernels{&latent_kernels_generic};
#endif

// Multiply-adds that take as long as opening one packed weight.
constexpr double kUnpackProducts = 8;
// How much longer a rounded multiply-add of absorbed rows takes than one of expanded rows. On Zen 4 at
// DeepSeek-V3's sizes both forms are then chosen where they are measured to meet: at 48 new tokens without a
// context, 110 after 512 cached ones, 128 after 4096. With floats both take the same.
constexpr double kAbsorbedTime = 1.25;

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("mla_attention: " + what);
}

// With one head, a block of a cache is one slab.
void write_row(const Cache& cache, int64_t block_size, int64_t slot, int64_t depth, const float* from) {
  const int64_t offset = slot % block_size;
  uint8_t* start = cache.data + slot / block_size * slab_bytes(cache.type, block_size, depth);
  latent_kernels().write_cache(from, depth, cache.type, start + element_bytes(cache.type, offset * depth),
                               start + block_size * depth + 2 * offset * (depth / kCacheGroup));
}

void write_new(const LatentAttention& a) {
  const int64_t grain = std::max<int64_t>(1, (16 << 10) / (a.depth + a.rope));
  runtime::Pool::instance().parallel_for(a.tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      write_row(a.latents, a.block_size, a.slots[token], a.depth, a.latent + token * a.latent_token);
      write_row(a.rotated, a.block_size, a.slots[token], a.rope, a.k_rope + token * a.k_rope_token);
    }
  });
}

// Counts the multiply-adds of both ways, by the sizes of the sequence and how its cache is multiplied.
bool expand(const LatentAttention& a, int64_t sequence) {
  if (a.form != LatentForm::automatic) return a.form == LatentForm::expanded;
  const double count = a.seq_starts[sequence + 1] - a.seq_starts[sequence];
  const double context = a.context_lens[sequence];
  const double attended = count * (context - count) + count * (count + 1) / 2;
  const double weights = static_cast<double>(a.depth) * static_cast<double>(a.nope + a.value_depth);
  const double longer = rounded_attention(a.latents.type, a.rotated.type) ? kAbsorbedTime : 1;
  const double absorbed = count * weights + longer * attended * static_cast<double>(2 * a.depth + a.rope);
  const double expanded =
      (context + kUnpackProducts) * weights + attended * static_cast<double>(a.nope + a.rope + a.value_depth);
  return expanded < absorbed;
}

}  // namespace

const LatentKernels& latent_kernels() {
  return *kKernels.pick();
}

CachedRows latent_rows(const LatentAttention& a) {
  return {a.latents.data, slab_bytes(a.latents.type, a.block_size, a.depth), a.latents.type,
          static_cast<int>(a.depth)};
}

CachedRows rotated_rows(const LatentAttention& a) {
  return {a.rotated.data, slab_bytes(a.rotated.type, a.block_size, a.rope), a.rotated.type,
          static_cast<int>(a.rope)};
}

Pages latent_pages(const LatentAttention& a, int64_t sequence, int64_t end) {
  return {a.block_tables + sequence * a.table_columns, a.block_size, end};
}

int64_t head_bytes(Format format, int64_t rows, int64_t columns) {
  return (packed_bytes(format, rows, columns) + 63) / 64 * 64;
}

void check_latent_attention(const LatentAttention& a) {
  if (a.heads < 1 || a.heads > 4096) refuse("there must be 1 to 4096 heads, not " + std::to_string(a.heads));
  const auto check_depth = [](const char* what, int64_t depth, int64_t step) {
    if (depth < step || depth % step || depth > 4096) {
      refuse(std::string(what) + " must be a multiple of " + std::to_string(step) + " up to 4096, not " +
             std::to_string(depth));
    }
  };
  check_depth("the depth of the latent", a.depth, 32);
  check_depth("the depth of `q_nope`", a.nope, 32);
  check_depth("the depth of `q_rope`", a.rope, 16);
  check_depth("the depth of the values", a.value_depth, 16);
  check_cache("mla_attention", a.latents.type, a.depth);
  check_cache("mla_attention", a.rotated.type, a.rope);
  check_shape(a.w_key.format, a.depth, a.nope);
  check_shape(a.w_value.format, a.value_depth, a.depth);
  for (const HeadWeights* weight : {&a.w_key, &a.w_value}) {
    if (latent_kernels().unpack[static_cast<int>(weight->format)] == nullptr)
      refuse(std::string("weights in ") + info(weight->format).name + " cannot be expanded");
  }
  Attention step{};
  step.tokens = a.tokens;
  step.blocks = a.blocks;
  step.block_size = a.block_size;
  step.seq_starts = a.seq_starts;
  step.context_lens = a.context_lens;
  step.block_tables = a.block_tables;
  step.sequences = a.sequences;
  step.table_columns = a.table_columns;
  step.slots = a.slots;
  check_step("mla_attention", step);
}

void latent_attention(const LatentAttention& a) {
  if (a.tokens <= 0) return;
  const int64_t token_floats = a.heads * a.value_depth;
  const int64_t from = a.sequences > 0 ? a.seq_starts[0] : a.tokens;
  const int64_t to = a.sequences > 0 ? a.seq_starts[a.sequences] : a.tokens;
  std::fill(a.out, a.out + from * token_floats, 0.0f);
  std::fill(a.out + to * token_floats, a.out + a.tokens * token_floats, 0.0f);
  write_new(a);
  // Absorbed sequences that follow each other share the reading of the weights.
  thread_local std::vector<LatentSpan> spans;
  spans.clear();
  const auto flush = [&] {
    if (!spans.empty()) absorbed_attention(a, spans.data(), static_cast<int64_t>(spans.size()));
    spans.clear();
  };
  for (int64_t sequence = 0; sequence < a.sequences; ++sequence) {
    const int64_t first = a.seq_starts[sequence], last = a.seq_starts[sequence + 1];
    if (first == last) continue;
    if (expand(a, sequence)) {
      flush();
      expanded_attention(a, sequence);
    } else {
      spans.push_back({sequence, first, last});
    }
  }
  flush();
}

int64_t latent_workspace(int64_t heads, int64_t nope, int64_t rope, int64_t depth, int64_t value_depth) {
  const int64_t threads = runtime::Pool::instance().threads();
  return absorbed_workspace(heads, nope, rope, depth, value_depth, threads) +
         expanded_workspace(nope, rope, depth, value_depth, threads);
}

}  // namespace ktc::kernels
