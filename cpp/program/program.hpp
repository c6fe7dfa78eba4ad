// A native program: a segment of a placed graph as a flat list of ops that run without returning to Python.
//
// Its text knows sizes as functions of the step's symbols. For the sizes of a step it is planned once: every
// op becomes a function with checked operands, and activations get places in one workspace by liveness.
#pragma once

#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "program/affine.hpp"
#include "program/ops.hpp"
#include "program/tensor.hpp"
#include "program/workspace.hpp"

namespace ktc::program {

struct Buffer {
  enum class Kind { activation, external, constant };
  Kind kind;
  Affine bytes;
  uint8_t* address = nullptr;  // of a constant
};

struct Text {
  int symbols = 0;
  std::vector<Buffer> buffers;
  std::vector<View> views;
  struct Op {
    const OpEntry* entry;
    std::string name;           // of the graph's node, for errors and counters
    std::vector<int> operands;  // numbers of views; -1 for one left out
    std::vector<int64_t> ints;
    std::vector<double> floats;
  };
  std::vector<Op> ops;
};

// Memory of an external buffer in one step.
struct Memory {
  uint8_t* address;
  int64_t bytes;
};

// What the ops of one list entry did since counting began.
struct Counter {
  std::string name, kind;
  int64_t calls = 0;
  double seconds = 0, bytes = 0, operations = 0;
};

struct Plan;

class Program {
 public:
  // Throws std::invalid_argument for a text that is not one: numbers out of range, operands missing.
  Program(Text text, std::shared_ptr<Workspace> workspace);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Runs a step. `externals` are in the order of the external buffers, and as large as the text says for
  // these sizes. One call at a time a workspace; others wait.
  //
  // Throws std::invalid_argument (and std::out_of_range for a token id or an index) naming the op,
  // OutOfMemory.
  void run(const Sizes& sizes, const std::vector<Memory>& externals);

  // Bytes of activations that a step of these sizes needs.
  int64_t workspace_bytes(const Sizes& sizes);

  void count(bool on);
  std::vector<Counter> counters() const { return counters_; }
  size_t ops() const { return text_.ops.size(); }

 private:
  Plan& plan(const Sizes& sizes);

  Text text_;
  std::shared_ptr<Workspace> workspace_;
  std::list<std::unique_ptr<Plan>> plans_;  // the last ones used, newest first
  bool counting_ = false;
  std::vector<Counter> counters_;
};

}  // namespace ktc::program
