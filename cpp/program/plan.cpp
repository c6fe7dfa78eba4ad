// From a program's text to a plan: sizes, checked operands, the functions of the ops, places by liveness.
#include "program/plan.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace ktc::program {
namespace {

constexpr int64_t kAlign = 64;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

// Memory in use from one step to another, both included.
struct Interval {
  int64_t bytes = 0;
  int first = -1, last = -1;

  void use(int step) {
    if (first < 0) first = step;
    last = step;
  }
};

class Planner {
 public:
  Planner(const Text& text, const Sizes& sizes) : text_(text), plan_(std::make_unique<Plan>()) {
    plan_->sizes = sizes;
  }

  std::unique_ptr<Plan> run() {
    buffers();
    for (const View& view : text_.views) tensors_.push_back(resolve(view));
    touch();
    const int count = static_cast<int>(text_.ops.size());
    for (int op = 0; op < count;) op += step(op);
    place();
    const std::vector<runtime::Region>* soon = nullptr;
    for (auto planned = plan_->steps.rbegin(); planned != plan_->steps.rend(); ++planned) {
      planned->soon = soon;
      if (!planned->step.weights.empty()) soon = &planned->step.weights;
    }
    return std::move(plan_);
  }

 private:
  void buffers() {
    for (size_t i = 0; i < text_.buffers.size(); ++i) {
      const Buffer& buffer = text_.buffers[i];
      const int64_t bytes = buffer.bytes.at(plan_->sizes);
      if (bytes < 0) throw std::invalid_argument("a buffer of the step has a negative size");
      bytes_.push_back(bytes);
      intervals_.push_back({aligned(bytes), -1, -1});
      plan_->bases.push_back(buffer.kind == Buffer::Kind::constant ? buffer.address : nullptr);
      if (buffer.kind == Buffer::Kind::external) {
        plan_->externals.push_back(static_cast<int>(i));
        plan_->external_bytes.push_back(bytes);
      }
    }
  }

  void touch() {
    touched_.assign(text_.buffers.size(), {-1, -1});
    for (size_t i = 0; i < text_.ops.size(); ++i) {
      for (int operand : text_.ops[i].operands) {
        if (operand < 0) continue;
        auto& [first, last] = touched_[static_cast<size_t>(text_.views[static_cast<size_t>(operand)].buffer)];
        if (first < 0) first = static_cast<int>(i);
        last = static_cast<int>(i);
      }
    }
  }

  // The view with sizes; it must lie inside its buffer.
  Tensor resolve(const View& view) const {
    Tensor tensor;
    tensor.type = view.type;
    tensor.view = static_cast<int>(&view - text_.views.data());
    const int64_t item = item_bytes(view.type), offset = view.offset.at(plan_->sizes);
    int64_t last = offset, count = 1;
    bool fits = offset >= 0;
    for (size_t dim = 0; dim < view.shape.size(); ++dim) {
      const int64_t size = view.shape[dim].at(plan_->sizes), stride = view.strides[dim].at(plan_->sizes);
      tensor.shape.push_back(size);
      tensor.strides.push_back(stride);
      int64_t reach;
      fits = fits && size >= 0 && stride >= 0 &&
             !__builtin_mul_overflow(std::max<int64_t>(size - 1, 0), stride, &reach) &&
             !__builtin_add_overflow(last, reach, &last) && !__builtin_mul_overflow(count, size, &count);
    }
    const int64_t bytes = bytes_[static_cast<size_t>(view.buffer)];
    if (!fits || (count > 0 && last >= bytes / item)) {
      throw std::invalid_argument("an operand of the step lies outside its buffer of " +
                                  std::to_string(bytes) + " bytes");
    }
    tensor.base = &plan_->bases[static_cast<size_t>(view.buffer)];
    tensor.offset = offset * item;
    return tensor;
  }

  Call call(const Text::Op& op, int step) {
    Call found;
    for (int operand : op.operands)
      found.operands.push_back(operand < 0 ? Tensor{} : tensors_[static_cast<size_t>(operand)]);
    found.ints = op.ints;
    found.floats = op.floats;
    found.temporary = [this, step](int64_t bytes) { return temporary(bytes, step); };
    return found;
  }

  Tensor temporary(int64_t bytes, int step) {
    Tensor tensor;
    tensor.type = Type::u8;
    tensor.shape = {bytes};
    tensor.strides = {1};
    plan_->bases.push_back(nullptr);
    tensor.base = &plan_->bases.back();
    intervals_.push_back({aligned(bytes), step, step});
    return tensor;
  }

  // Makes the next step of the plan of the op, and of those after it that can join; returns how many.
  int step(int first) {
    const int index = static_cast<int>(plan_->steps.size());
    const Text::Op& op = text_.ops[static_cast<size_t>(first)];
    const OpEntry& entry = *op.entry;
    int count = 1;
    try {
      if (const int chained = chain(first)) return chained;
      std::vector<Call> calls{call(op, index)};
      while (entry.join != nullptr && first + count < static_cast<int>(text_.ops.size())) {
        const Text::Op& next = text_.ops[static_cast<size_t>(first + count)];
        if (next.entry != op.entry || next.operands[0] != op.operands[0] || !entry.join(op.ints, next.ints) ||
            reads_of(next, first, count)) {
          break;
        }
        calls.push_back(call(next, index));
        ++count;
      }
      plan_->steps.push_back({entry.make(calls), first, count});
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(op.name + ": " + entry.name + ": " + error.what());
    }
    for (int i = first; i < first + count; ++i) {
      for (int operand : text_.ops[static_cast<size_t>(i)].operands) {
        if (operand >= 0)
          intervals_[static_cast<size_t>(text_.views[static_cast<size_t>(operand)].buffer)].use(index);
      }
    }
    return count;
  }

  // Makes one step of the op and those that follow it, if its entry can; returns how many, 0 for none.
  int chain(int first) {
    const Chain* chain = text_.ops[static_cast<size_t>(first)].entry->chain;
    for (; chain != nullptr; chain = chain->otherwise)
      if (const int count = chain_of(chain, first)) return count;
    return 0;
  }

  int chain_of(const Chain* chain, int first) {
    const int index = static_cast<int>(plan_->steps.size());
    const int count = static_cast<int>(chain->followers.size()) + 1;
    if (first + count > static_cast<int>(text_.ops.size())) return 0;
    std::vector<Call> calls;
    std::vector<int> inside;  // buffers that pass values along
    for (int i = first; i < first + count; ++i) {
      const Text::Op& op = text_.ops[static_cast<size_t>(i)];
      if (i > first && op.entry->name != chain->followers[static_cast<size_t>(i - first - 1)]) return 0;
      for (size_t a = 0; a < op.operands.size() && i + 1 < first + count; ++a) {
        const char letter = op.entry->operands[a];
        if (op.operands[a] < 0 || letter == 'i' || letter == 'I') continue;
        if (i == first && static_cast<int>(a) == chain->kept) continue;
        const int buffer = text_.views[static_cast<size_t>(op.operands[a])].buffer;
        if (!only_between(buffer, i, i + 1)) return 0;
        inside.push_back(buffer);
      }
      calls.push_back(call(op, index));
    }
    std::optional<Step> made = chain->make(calls);
    if (!made) return 0;
    plan_->steps.push_back({std::move(*made), first + chain->named, count});
    for (int i = first; i < first + count; ++i) {
      for (int operand : text_.ops[static_cast<size_t>(i)].operands) {
        if (operand < 0) continue;
        const int buffer = text_.views[static_cast<size_t>(operand)].buffer;
        if (std::find(inside.begin(), inside.end(), buffer) == inside.end())
          intervals_[static_cast<size_t>(buffer)].use(index);
      }
    }
    return count;
  }

  // Whether a buffer is an activation that ops `writer` and `reader` touch and no other.
  bool only_between(int buffer, int writer, int reader) const {
    const auto& [first, last] = touched_[static_cast<size_t>(buffer)];
    return text_.buffers[static_cast<size_t>(buffer)].kind == Buffer::Kind::activation && first == writer &&
           last == reader;
  }

  // Whether an op touches the buffer of an operand other than the first of ops [first, first + count).
  bool reads_of(const Text::Op& next, int first, int count) const {
    const auto buffer = [&](int view) { return text_.views[static_cast<size_t>(view)].buffer; };
    for (int i = first; i < first + count; ++i) {
      const Text::Op& op = text_.ops[static_cast<size_t>(i)];
      for (size_t a = 0; a < op.operands.size(); ++a) {
        if (op.entry->operands[a] != 'o' || op.operands[a] < 0) continue;
        for (int operand : next.operands)
          if (operand >= 0 && buffer(operand) == buffer(op.operands[a])) return true;
      }
    }
    return false;
  }

  // Places in the workspace: the largest first, each at the lowest offset that nothing placed before it and
  // in use at the same time covers.
  void place() {
    const size_t buffers = text_.buffers.size();
    plan_->places.assign(intervals_.size(), -1);
    std::vector<size_t> order;
    for (size_t i = 0; i < intervals_.size(); ++i) {
      if (i < buffers && text_.buffers[i].kind != Buffer::Kind::activation) continue;
      if (intervals_[i].first >= 0) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return intervals_[a].bytes > intervals_[b].bytes; });
    std::vector<std::vector<size_t>> placed(plan_->steps.size());  // what is in use in each step
    std::vector<size_t> others;
    for (size_t i : order) {
      others.clear();
      for (int step = intervals_[i].first; step <= intervals_[i].last; ++step) {
        for (size_t other : placed[static_cast<size_t>(step)]) others.push_back(other);
        placed[static_cast<size_t>(step)].push_back(i);
      }
      plan_->places[i] = lowest(others, intervals_[i].bytes);
      int64_t end;
      if (__builtin_add_overflow(plan_->places[i], intervals_[i].bytes, &end))
        throw std::overflow_error("the activations do not fit");
      plan_->workspace_bytes = std::max(plan_->workspace_bytes, end);
    }
  }

  // The lowest offset of `bytes` bytes beside what is placed already; an interval may occur several times.
  int64_t lowest(std::vector<size_t>& others, int64_t bytes) const {
    const std::vector<int64_t>& places = plan_->places;
    std::sort(others.begin(), others.end(), [&](size_t a, size_t b) { return places[a] < places[b]; });
    int64_t start = 0;
    for (size_t other : others) {
      if (places[other] - start >= bytes) break;
      start = std::max(start, places[other] + intervals_[other].bytes);
    }
    return start;
  }

  const Text& text_;
  std::unique_ptr<Plan> plan_;
  std::vector<int64_t> bytes_;
  std::vector<Interval> intervals_;  // of buffers, then temporaries
  std::vector<Tensor> tensors_;
  std::vector<std::pair<int, int>> touched_;  // by buffer: the first and the last op that names it
};

}  // namespace

std::unique_ptr<Plan> make_plan(const Text& text, const Sizes& sizes) {
  return Planner(text, sizes).run();
}

}  // namespace ktc::program
