// Which tokens go to which expert: the choices sorted by expert.
#pragma once

#include <cstdint>

namespace ktc::kernels {

// Choices [begin[i], begin[i + 1]) are those of active expert i.
struct Route {
  int64_t active;   // experts that some token chose
  int32_t* expert;  // [active] their numbers, ascending
  int32_t* begin;   // [active + 1] their first choices
  int32_t* token;   // [tokens * chosen] the token of each choice, ascending within an expert
  float* weight;    // [tokens * chosen]
};

// Bytes of a route's arrays.
int64_t route_bytes(int64_t count, int64_t tokens, int64_t chosen);

// Sorts indices[tokens, chosen], each in [0, count), in `memory`: route_bytes of it at a multiple of 4.
Route make_route(const int64_t* indices, const float* weights, int64_t count, int64_t tokens, int64_t chosen,
                 uint8_t* memory);

}  // namespace ktc::kernels
