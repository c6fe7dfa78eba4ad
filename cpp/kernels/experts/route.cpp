// Sorts choices by expert: a counting sort, which keeps the order of the tokens.
#include "kernels/experts/route.hpp"

#include <algorithm>

namespace ktc::kernels {

int64_t route_bytes(int64_t count, int64_t tokens, int64_t chosen) {
  return 4 * (count + (count + 1) + 2 * tokens * chosen);
}

Route make_route(const int64_t* indices, const float* weights, int64_t count, int64_t tokens, int64_t chosen,
                 uint8_t* memory) {
  Route route{};
  const int64_t all = tokens * chosen;
  route.expert = reinterpret_cast<int32_t*>(memory);
  route.begin = route.expert + count;
  route.token = route.begin + count + 1;
  route.weight = reinterpret_cast<float*>(route.token + all);

  // begin[e] is first the number of choices of expert e, then where its next choice goes.
  std::fill_n(route.begin, count + 1, 0);
  for (int64_t i = 0; i < all; ++i) ++route.begin[indices[i]];
  int32_t place = 0;
  for (int64_t e = 0; e < count; ++e) {
    const int32_t here = route.begin[e];
    if (here > 0) route.expert[route.active++] = static_cast<int32_t>(e);
    route.begin[e] = place;
    place += here;
  }
  for (int64_t i = 0; i < all; ++i) {
    const int32_t to = route.begin[indices[i]]++;
    route.token[to] = static_cast<int32_t>(i / chosen);
    route.weight[to] = weights[i];
  }
  // Now begin[e] is where expert e ends: from the active ones' ends to their begins.
  for (int64_t i = 0; i < route.active; ++i) route.begin[i] = route.begin[route.expert[i]];
  for (int64_t i = route.active; i > 0; --i) route.begin[i] = route.begin[i - 1];
  route.begin[0] = 0;
  return route;
}

}  // namespace ktc::kernels
