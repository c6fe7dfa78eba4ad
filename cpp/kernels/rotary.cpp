// Rotary tables by the C library's double precision functions: a few per step, shared by all layers.
#include "kernels/rotary.hpp"

#include <algorithm>
#include <cmath>

#include "runtime/pool.hpp"

namespace ktc::kernels {

void rotary(const int64_t* positions, int64_t tokens, const float* frequencies, int64_t half, float scaling,
            float* cos, float* sin) {
  const int64_t grain = std::max<int64_t>(1, 128 / std::max<int64_t>(half, 1));
  runtime::Pool::instance().parallel_for(tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float position = static_cast<float>(positions[t]);
      float *c = cos + t * 2 * half, *s = sin + t * 2 * half;
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position * frequencies[i]);
        c[i] = static_cast<float>(std::cos(angle)) * scaling;
        s[i] = static_cast<float>(std::sin(angle)) * scaling;
      }
      std::copy(c, c + half, c + half);
      std::copy(s, s + half, s + half);
    }
  });
}

}  // namespace ktc::kernels
