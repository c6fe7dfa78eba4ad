// The table of what a native program can run. Adding an op is one entry in the table of one ops_*.cpp (and,
// for a new file, one line in ops.cpp).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "program/tensor.hpp"
#include "runtime/soon.hpp"

namespace ktc::program {

// Bytes that an op moves and floating-point (or integer) operations it makes, for the counters.
struct Work {
  double bytes = 0, operations = 0;
};

// One op of a program at a step's sizes: what its entry looks at to make the function that runs it.
//
// Operands carry sizes but no addresses yet: these stand while the step runs (Tensor::data).
struct Call {
  std::vector<Tensor> operands;
  std::vector<int64_t> ints;
  std::vector<double> floats;

  // Memory for this op alone while it runs; bytes, 64-byte aligned.
  std::function<Tensor(int64_t)> temporary;
};

using Run = std::function<void()>;

// What an entry makes of a call.
struct Step {
  Run run;
  Work work;
  std::function<Work()> more =
      {};  // what depends on the step's data, asked for while it counts; may be empty
  std::vector<runtime::Region> weights =
      {};  // that it reads once from beginning to end, to be asked for ahead
};

struct Chain;

struct OpEntry {
  const char* name;
  // A letter an operand: 'i' read, 'o' written, 'm' both; capital: may be left out.
  const char* operands;
  int ints, floats;
  // The function that runs the call, and what it costs. Checks everything that this relies on; throws
  // std::invalid_argument. One call, or several where `join` allowed it.
  Step (*make)(const std::vector<Call>& calls);
  // Whether ops one after another, of this kind and with the same first operand, can become one step, by
  // their ints; null: never.
  bool (*join)(const std::vector<int64_t>& first, const std::vector<int64_t>& next) = nullptr;
  // What else can become one step with it; null: nothing.
  const Chain* chain = nullptr;
};

// Ops one after another, each the only reader of what the one before it writes, that can become one step
// which writes the last one's results alone.
struct Chain {
  std::vector<std::string> followers;  // names of the ops behind the first
  // The step, or none for calls that it does not take: those are made one by one, with their checks.
  std::optional<Step> (*make)(const std::vector<Call>& calls);
  int named = 0;                     // which of the ops the step counts as
  int kept = -1;                     // what the first op writes for others too, by operand; -1: nothing
  const Chain* otherwise = nullptr;  // to be tried next
};

// nullptr for an op that is not in the table.
const OpEntry* find_op(const std::string& name);
std::vector<std::string> op_names();

}  // namespace ktc::program
