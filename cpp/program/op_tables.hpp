// The tables that ops.cpp joins; each is defined in the source of its name.
#pragma once

#include "kernels/packed/format.hpp"
#include "program/ops.hpp"

namespace ktc::program {

struct OpTable {
  const OpEntry* entries;
  int count;
};

OpTable linear_ops();     // ops_linear.cpp: packed weights
OpTable vector_ops();     // ops_vector.cpp: norms, rotary embedding, elementwise functions
OpTable attention_ops();  // ops_attention.cpp
OpTable expert_ops();     // ops_experts.cpp: routers and routed experts
OpTable tensor_ops();     // ops_tensor.cpp: what torch functions leave: copies, casts, arithmetic, selection

// How a step fills the activations that a product of this format reads, [tokens, columns]; empty: from x.
using FillRecords = std::function<void(Format format, uint8_t* records)>;

// ops_linear.cpp: linear, and linear, elementwise, linear as one step.
std::optional<Step> linear_step(const std::vector<Call>& calls, const FillRecords& fill);
std::optional<Step> gated_step(const std::vector<Call>& calls, const FillRecords& fill);

// ops_normed.cpp: a norm and the products behind it, without and with a sum that others read.
extern const Chain kNormedLinear, kAddNormedLinear;

// ops_attention.cpp: rotary embedding and the attention behind it.
extern const Chain kRotatedAttention;

}  // namespace ktc::program
