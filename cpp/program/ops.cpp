// All tables of ops.
#include "program/ops.hpp"

#include "program/op_tables.hpp"

namespace ktc::program {
namespace {

constexpr OpTable (*kTables[])() = {linear_ops, vector_ops, attention_ops, expert_ops, tensor_ops};

}  // namespace

const OpEntry* find_op(const std::string& name) {
  for (const auto table : kTables) {
    const OpTable ops = table();
    for (int i = 0; i < ops.count; ++i)
      if (name == ops.entries[i].name) return &ops.entries[i];
  }
  return nullptr;
}

std::vector<std::string> op_names() {
  std::vector<std::string> names;
  for (const auto table : kTables) {
    const OpTable ops = table();
    for (int i = 0; i < ops.count; ++i) names.emplace_back(ops.entries[i].name);
  }
  return names;
}

}  // namespace ktc::program
