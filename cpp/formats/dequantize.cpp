// Splits dequantisation among cores.
#include "formats/dequantize.hpp"

#include "formats/chunks.hpp"
#include "formats/dequantize_blocks.hpp"

namespace ktc {

void dequantize(Format format, const uint8_t* in, float* out, int64_t blocks) {
  constexpr int64_t kElementsPerThread = 1 << 18;  // below, starting a thread costs more than it saves
  const FormatInfo& f = info(format);
  in_chunks(blocks, kElementsPerThread / f.elements, [&](int64_t begin, int64_t end) {
    dequantize_blocks(format, in + begin * f.bytes, out + begin * f.elements, end - begin);
  });
}

}  // namespace ktc
