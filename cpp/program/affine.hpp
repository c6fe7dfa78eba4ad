// Sizes that a step decides: whole numbers affine in a few symbols (tokens, sequences, ...).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace ktc::program {

// The values of the symbols in one step.
using Sizes = std::vector<int64_t>;

// terms[0] + terms[1] * symbol 0 + terms[2] * symbol 1 + ...
struct Affine {
  std::vector<int64_t> terms;

  // Throws std::overflow_error.
  int64_t at(const Sizes& sizes) const {
    int64_t sum = terms.empty() ? 0 : terms[0];
    for (size_t i = 1; i < terms.size(); ++i) {
      int64_t product;
      if (__builtin_mul_overflow(terms[i], sizes[i - 1], &product) ||
          __builtin_add_overflow(sum, product, &sum)) {
        throw std::overflow_error("a size of the step does not fit 64 bits");
      }
    }
    return sum;
  }
};

}  // namespace ktc::program
