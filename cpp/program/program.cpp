// Running of programs, see program.hpp.
#include "program/program.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "program/plan.hpp"
#include "runtime/pool.hpp"

namespace ktc::program {
namespace {

// Sizes whose plans are kept: the steps of decoding repeat, those of prompts do not.
constexpr size_t kPlans = 8;

void check(const Text& text) {
  const auto fail = [](const std::string& what) { throw std::invalid_argument("native program: " + what); };
  const auto affine = [&](const Affine& a) {
    if (a.terms.size() != static_cast<size_t>(text.symbols) + 1) fail("a size has the wrong number of terms");
  };
  for (const Buffer& buffer : text.buffers) affine(buffer.bytes);
  for (const View& view : text.views) {
    if (view.buffer < 0 || view.buffer >= static_cast<int>(text.buffers.size())) fail("no such buffer");
    if (view.shape.size() != view.strides.size()) fail("a view has sizes without strides");
    affine(view.offset);
    for (const Affine& size : view.shape) affine(size);
    for (const Affine& stride : view.strides) affine(stride);
  }
  for (const Text::Op& op : text.ops) {
    const OpEntry& entry = *op.entry;
    const std::string letters = entry.operands;
    if (op.operands.size() != letters.size() || op.ints.size() != static_cast<size_t>(entry.ints) ||
        op.floats.size() != static_cast<size_t>(entry.floats)) {
      fail(op.name + ": " + entry.name + " takes other operands");
    }
    for (size_t i = 0; i < letters.size(); ++i) {
      const int operand = op.operands[i];
      if (operand >= static_cast<int>(text.views.size()) || operand < -1) fail("no such operand");
      const char letter = letters[i];
      if (operand < 0) {
        if (letter == 'i' || letter == 'o' || letter == 'm') {
          fail(op.name + ": operand " + std::to_string(i) + " of " + entry.name + " is missing");
        }
      } else if (letter == 'o' || letter == 'O') {
        const Buffer& buffer =
            text.buffers[static_cast<size_t>(text.views[static_cast<size_t>(operand)].buffer)];
        if (buffer.kind == Buffer::Kind::constant) fail(op.name + " writes a constant");
      }
    }
  }
}

}  // namespace

Program::Program(Text text, std::shared_ptr<Workspace> workspace)
    : text_(std::move(text)), workspace_(std::move(workspace)) {
  check(text_);
  for (const Text::Op& op : text_.ops) {
    Counter counter;
    counter.name = op.name;
    counter.kind = op.entry->name;
    counters_.push_back(std::move(counter));
  }
}

Program::~Program() = default;

Plan& Program::plan(const Sizes& sizes) {
  if (sizes.size() != static_cast<size_t>(text_.symbols))
    throw std::invalid_argument("a step of this program has " + std::to_string(text_.symbols) + " sizes");
  for (auto it = plans_.begin(); it != plans_.end(); ++it) {
    if ((*it)->sizes == sizes) {
      plans_.splice(plans_.begin(), plans_, it);
      return *plans_.front();
    }
  }
  plans_.push_front(make_plan(text_, sizes));
  if (plans_.size() > kPlans) plans_.pop_back();
  return *plans_.front();
}

int64_t Program::workspace_bytes(const Sizes& sizes) {
  const std::lock_guard lock(workspace_->mutex);
  return plan(sizes).workspace_bytes;
}

void Program::count(bool on) {
  const std::lock_guard lock(workspace_->mutex);
  counting_ = on;
  for (Counter& counter : counters_) {
    counter.calls = 0;
    counter.seconds = counter.bytes = counter.operations = 0;
  }
}

void Program::run(const Sizes& sizes, const std::vector<Memory>& externals) {
  const std::lock_guard lock(workspace_->mutex);
  Plan& plan = this->plan(sizes);
  if (externals.size() != plan.externals.size())
    throw std::invalid_argument("a step of this program has " + std::to_string(plan.externals.size()) +
                                " inputs and outputs");
  for (size_t i = 0; i < externals.size(); ++i) {
    if (externals[i].bytes < plan.external_bytes[i] ||
        (externals[i].address == nullptr && plan.external_bytes[i] > 0)) {
      throw std::invalid_argument("input " + std::to_string(i) + " of the step has " +
                                  std::to_string(externals[i].bytes) + " bytes and must have " +
                                  std::to_string(plan.external_bytes[i]));
    }
    plan.bases[static_cast<size_t>(plan.externals[i])] = externals[i].address;
  }
  uint8_t* workspace = workspace_->get(static_cast<size_t>(plan.workspace_bytes));
  if (workspace != plan.workspace) {
    for (size_t i = 0; i < plan.places.size(); ++i)
      if (plan.places[i] >= 0) plan.bases[i] = workspace + plan.places[i];
    plan.workspace = workspace;
  }

  const runtime::Pool::Session session;
  using Clock = std::chrono::steady_clock;
  const std::vector<runtime::Region>* soon = nullptr;
  for (const Plan::Planned& planned : plan.steps) {
    const Step& step = planned.step;
    if (planned.soon != nullptr && planned.soon != soon) session.read_soon(*(soon = planned.soon));
    const std::string& name = text_.ops[static_cast<size_t>(planned.first_op)].name;
    const auto start = counting_ ? Clock::now() : Clock::time_point{};
    try {
      step.run();
    } catch (const std::out_of_range& error) {
      throw std::out_of_range(name + ": " + error.what());
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(name + ": " + error.what());
    }
    if (counting_) {
      const std::chrono::duration<double> seconds = Clock::now() - start;
      const Work more = step.more ? step.more() : Work{};
      Counter& counter = counters_[static_cast<size_t>(planned.first_op)];
      ++counter.calls;
      counter.seconds += seconds.count();
      counter.bytes += step.work.bytes + more.bytes;
      counter.operations += step.work.operations + more.operations;
    }
  }
}

}  // namespace ktc::program
