// Scores experts and chooses the best of them, token by token.
#include "kernels/router/router.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/scratch.hpp"
#include "runtime/pool.hpp"

namespace ktc::kernels {
namespace {

// Whether x comes before y where y has the lower index: NaN counts as the highest.
bool above(float x, float y) {
  return x > y || (std::isnan(x) && !std::isnan(y));
}

// out = softmax(x), where NaN spreads; x and out may be the same.
void softmax(const float* x, int64_t n, float* out) {
  float highest = x[0];
  for (int64_t i = 1; i < n; ++i) {
    if (above(x[i], highest)) highest = x[i];
  }
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += out[i] = std::exp(x[i] - highest);
  for (int64_t i = 0; i < n; ++i) out[i] /= sum;
}

// The index of the best of n values that are not taken; -1 when all are.
int64_t best_of(const float* values, const uint8_t* taken, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (!taken[i] && (best < 0 || above(values[i], values[best]))) best = i;
  }
  return best;
}

// What a group of n experts is worth.
float worth_of(const float* choice, int64_t n, GroupScore kind) {
  float first = choice[0];
  int64_t place = 0;
  for (int64_t i = 1; i < n; ++i) {
    if (above(choice[i], first)) first = choice[place = i];
  }
  if (kind == GroupScore::max) return first;
  float second = choice[place == 0 ? 1 : 0];
  for (int64_t i = 0; i < n; ++i) {
    if (i != place && above(choice[i], second)) second = choice[i];
  }
  return first + second;
}

// A thread's memory for one token.
struct Room {
  float *scores, *choice, *worth;
  uint8_t* taken;  // [experts], then [groups]
};

void route(const Router& r, const Room& room, int64_t token) {
  const float* logits = r.logits + token * r.stride;
  const int64_t n = r.experts, size = n / r.groups;
  if (r.scoring == Scoring::softmax) {
    softmax(logits, n, room.scores);
  } else {
    const bool sigmoid = r.scoring == Scoring::sigmoid;
    for (int64_t i = 0; i < n; ++i)
      room.scores[i] = sigmoid ? 1.0f / (1.0f + std::exp(-logits[i])) : logits[i];
  }
  for (int64_t i = 0; i < n; ++i) room.choice[i] = r.bias ? room.scores[i] + r.bias[i] : room.scores[i];
  std::fill(room.taken, room.taken + n + r.groups, uint8_t{0});
  if (r.groups > 1) {
    uint8_t* kept = room.taken + n;
    for (int64_t g = 0; g < r.groups; ++g)
      room.worth[g] = worth_of(room.choice + g * size, size, r.group_score);
    for (int64_t k = 0; k < r.kept_groups; ++k) kept[best_of(room.worth, kept, r.groups)] = 1;
    for (int64_t g = 0; g < r.groups; ++g) {
      if (!kept[g]) std::fill(room.taken + g * size, room.taken + (g + 1) * size, uint8_t{1});
    }
  }
  float* weights = r.weights + token * r.top_k;
  int64_t* indices = r.indices + token * r.top_k;
  float sum = 0;
  for (int64_t k = 0; k < r.top_k; ++k) {
    const int64_t chosen = best_of(room.choice, room.taken, n);
    room.taken[chosen] = 1;
    indices[k] = chosen;
    weights[k] = room.scores[chosen];
  }
  if (r.scoring == Scoring::softmax_chosen) softmax(weights, r.top_k, weights);
  for (int64_t k = 0; k < r.top_k; ++k) sum += weights[k];
  for (int64_t k = 0; k < r.top_k; ++k) {
    if (r.normalize) weights[k] /= sum + 1e-20f;
    weights[k] *= r.scale;
  }
}

}  // namespace

void check_router(const Router& r) {
  const auto refuse = [](const std::string& what) { throw std::invalid_argument("router: " + what); };
  if (r.tokens < 0 || r.experts < 1 || r.stride < 0) refuse("a size is negative");
  if (r.groups < 1 || r.experts % r.groups || r.kept_groups < 1 || r.kept_groups > r.groups) {
    refuse("cannot keep " + std::to_string(r.kept_groups) + " of " + std::to_string(r.groups) +
           " groups of " + std::to_string(r.experts) + " experts");
  }
  const int64_t reachable = r.experts / r.groups * r.kept_groups;
  if (r.top_k < 1 || r.top_k > reachable) {
    refuse("cannot choose " + std::to_string(r.top_k) + " of " + std::to_string(reachable) + " experts");
  }
  if (r.groups > 1 && r.group_score == GroupScore::top2 && r.experts / r.groups < 2) {
    refuse("groups of one expert have no two best");
  }
}

void router(const Router& r) {
  // About 3 us of work: an exponential and top_k comparisons an expert.
  const int64_t grain = std::max<int64_t>(1, 2048 / (r.experts * (8 + r.top_k) / 8));
  runtime::Pool::instance().parallel_for(r.tokens, grain, [&](int64_t begin, int64_t end, int) {
    const size_t floats = static_cast<size_t>(2 * r.experts + r.groups);
    uint8_t* memory =
        worker_scratch().get(floats * sizeof(float) + static_cast<size_t>(r.experts + r.groups));
    Room room{};
    room.scores = reinterpret_cast<float*>(memory);
    room.choice = room.scores + r.experts;
    room.worth = room.choice + r.experts;
    room.taken = memory + floats * sizeof(float);
    for (int64_t token = begin; token < end; ++token) route(r, room, token);
  });
}

}  // namespace ktc::kernels
