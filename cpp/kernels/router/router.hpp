// The choice of experts of a mixture of experts.
#pragma once

#include <cstdint>

namespace ktc::kernels {

enum class Scoring : int { softmax, sigmoid, softmax_chosen };
enum class GroupScore : int { max, top2 };

// The meaning is that of the dialect's kt.router.
struct Router {
  const float* logits;  // [tokens, experts]
  int64_t stride;       // floats between tokens
  const float* bias;    // [experts] or null
  int64_t tokens, experts;
  int64_t top_k;
  Scoring scoring;
  int64_t groups, kept_groups;
  GroupScore group_score;
  bool normalize;
  float scale;
  float* weights;    // [tokens, top_k]
  int64_t* indices;  // [tokens, top_k]
};

// Throws std::invalid_argument when the sizes do not fit each other.
void check_router(const Router& r);

// Allocates nothing but a thread's scratch at its first use. Call check_router before.
void router(const Router& r);

}  // namespace ktc::kernels
