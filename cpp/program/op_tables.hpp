// The tables that ops.cpp joins; each is defined in the source of its name.
#pragma once

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

// ops_attention.cpp: rotary embedding and the attention behind it.
extern const Chain kRotatedAttention;

}  // namespace ktc::program
