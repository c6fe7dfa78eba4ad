// Checks the numbers of an attention step: nothing outside the caches may be read or written, whatever they
// say.
#include <stdexcept>
#include <string>

#include "kernels/attention/attention.hpp"

namespace ktc::kernels {
namespace {

[[noreturn]] void refuse(const std::string& what, const char* op = "attention") {
  throw std::invalid_argument(op + (": " + what));
}

void check_sequence(const char* op, const Attention& a, int64_t sequence) {
  const int64_t begin = a.seq_starts[sequence], end = a.seq_starts[sequence + 1];
  const std::string name = "sequence " + std::to_string(sequence);
  if (begin > end || begin < 0 || end > a.tokens) {
    refuse("`seq_starts` gives " + name + " the tokens [" + std::to_string(begin) + ", " +
               std::to_string(end) + ") of " + std::to_string(a.tokens),
           op);
  }
  if (begin == end) return;
  const int64_t context = a.context_lens[sequence];
  if (context < end - begin || context > a.table_columns * a.block_size) {
    refuse("`context_lens` of " + name + " is " + std::to_string(context) + ", with " +
               std::to_string(end - begin) + " new tokens and a table for " +
               std::to_string(a.table_columns * a.block_size),
           op);
  }
  const int64_t oldest = a.window > 0 ? context - (end - begin) - a.window + 1 : 0;
  const int32_t* table = a.block_tables + sequence * a.table_columns;
  for (int64_t i = (oldest > 0 ? oldest : 0) / a.block_size; i * a.block_size < context; ++i) {
    if (table[i] < 0 || table[i] >= a.blocks) {
      refuse("`block_tables` of " + name + " names block " + std::to_string(table[i]) + " of " +
                 std::to_string(a.blocks),
             op);
    }
  }
}

}  // namespace

void check_attention(const Attention& a) {
  if (a.heads < 1 || a.kv_heads < 1 || a.heads % a.kv_heads) {
    refuse(std::to_string(a.heads) + " query heads are no multiple of " + std::to_string(a.kv_heads) +
           " key heads");
  }
  if (a.depth < 16 || a.depth % 16 || a.value_depth < 16 || a.value_depth % 16 || a.depth > 4096 ||
      a.value_depth > 4096) {
    refuse("head depths must be multiples of 16 up to 4096, not " + std::to_string(a.depth) + " and " +
           std::to_string(a.value_depth));
  }
  check_cache("attention", a.keys.type, a.depth);
  check_cache("attention", a.values.type, a.value_depth);
  if (a.heads / a.kv_heads > kAttentionRows) {
    refuse("at most " + std::to_string(kAttentionRows) + " query heads may share a key head");
  }
  check_step("attention", a);
}

void check_cache(const char* op, CacheType type, int64_t depth) {
  if (type == CacheType::q8_0 && depth % kCacheGroup) {
    refuse("a q8_0 cache takes rows of a multiple of " + std::to_string(kCacheGroup) + " elements, not " +
               std::to_string(depth),
           op);
  }
}

void check_step(const char* op, const Attention& a) {
  if (a.block_size < 1 || a.window < 0 || !(a.softcap >= 0))
    refuse("`block_size`, `window` or `softcap` is out of range", op);
  for (int64_t i = 0; i < a.tokens; ++i) {
    if (a.slots[i] < 0 || a.slots[i] >= a.blocks * a.block_size) {
      refuse("`slots` puts token " + std::to_string(i) + " at " + std::to_string(a.slots[i]) + " of " +
                 std::to_string(a.blocks * a.block_size),
             op);
    }
  }
  for (int64_t i = 0; i < a.sequences; ++i) {
    check_sequence(op, a, i);
    if (i > 0 && a.seq_starts[i] < a.seq_starts[i - 1]) refuse("`seq_starts` decreases", op);
  }
}

}  // namespace ktc::kernels
