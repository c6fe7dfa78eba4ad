// Embedding lookup, from packed weights and from file blocks.
#include "kernels/embedding.hpp"

#include <stdexcept>
#include <string>

#include "formats/dequantize.hpp"
#include "kernels/packed/pack.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

void check_ids(const int64_t* ids, int64_t tokens, int64_t rows) {
  for (int64_t i = 0; i < tokens; ++i) {
    if (ids[i] < 0 || ids[i] >= rows) {
      throw std::out_of_range("token id " + std::to_string(ids[i]) + " at place " + std::to_string(i) +
                              " is outside the embedding's " + std::to_string(rows) + " rows");
    }
  }
}

// Tokens worth giving to another thread.
int64_t grain(int64_t columns) {
  return columns >= 4096 ? 1 : 4096 / columns;
}

}  // namespace

void embedding(const PackedWeight& weight, const int64_t* ids, int64_t tokens, float* out) {
  check_ids(ids, tokens, weight.rows);
  const int64_t columns = weight.columns;
  runtime::Pool::instance().parallel_for(tokens, grain(columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) unpack_row(weight, ids[i], out + i * columns);
  });
}

void embedding_blocks(Format format, const uint8_t* blocks, int64_t rows, int64_t columns, const int64_t* ids,
                      int64_t tokens, float* out) {
  check_ids(ids, tokens, rows);
  const int64_t row_blocks = columns / info(format).elements;
  runtime::Pool::instance().parallel_for(tokens, grain(columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      dequantize(format, blocks + ids[i] * row_blocks * info(format).bytes, out + i * columns, row_blocks);
    }
  });
}

}  // namespace ktc::kernels
