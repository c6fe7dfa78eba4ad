// Splits dequantisation among the pool's threads.
#include "formats/dequantize.hpp"

#include "formats/dequantize_blocks.hpp"
#include "runtime/pool.hpp"

namespace ktc {

void dequantize(Format format, const uint8_t* in, float* out, int64_t blocks) {
  constexpr int64_t kElementsPerTask = 1 << 16;
  const FormatInfo& f = info(format);
  runtime::Pool::instance().parallel_for(
      blocks, kElementsPerTask / f.elements, [&](int64_t begin, int64_t end, int) {
        dequantize_blocks(format, in + begin * f.bytes, out + begin * f.elements, end - begin);
      });
}

}  // namespace ktc
