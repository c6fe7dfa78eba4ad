// What makes a piece of a product worth giving to another thread: about 3 us of a core.
#pragma once

#include <cstdint>

namespace ktc::kernels {

inline constexpr int64_t kPieceBytes = 64 << 10;             // of weights, read once
inline constexpr int64_t kPieceProducts = int64_t{1} << 19;  // multiply-adds of bytes

}  // namespace ktc::kernels
