// A program at the sizes of a step.
#pragma once

#include <deque>
#include <vector>

#include "program/program.hpp"

namespace ktc::program {

struct Plan {
  struct Planned {
    Step step;
    int first_op, ops;                                   // of the text
    const std::vector<runtime::Region>* soon = nullptr;  // weights of the next step behind that names some
  };

  Sizes sizes;
  std::vector<Planned> steps;
  std::deque<uint8_t*> bases;           // address of every buffer and temporary; elements never move
  std::vector<int64_t> places;          // in the workspace; -1 for what does not lie there
  std::vector<int64_t> external_bytes;  // least sizes, in order
  std::vector<int> externals;           // their buffers
  int64_t workspace_bytes = 0;
  uint8_t* workspace = nullptr;  // what `bases` were made for
};

// Plans `text`. Throws std::invalid_argument naming the op for operands that do not fit, std::overflow_error.
std::unique_ptr<Plan> make_plan(const Text& text, const Sizes& sizes);

}  // namespace ktc::program
