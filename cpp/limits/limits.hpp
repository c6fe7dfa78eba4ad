// What this machine can do at most: how fast its threads read memory and multiply. The cost model divides by
// these, and benchmarks report their share of them.
#pragma once

#include <cstdint>
#include <string_view>

namespace ktc::limits {

// Reads `bytes` bytes at `data` (a multiple of 64 bytes) with the pool's threads, `streams` places at a time
// in each, over and over for at least `seconds`. Returns bytes a second of the best whole pass, since
// whatever else the machine does only takes away. Throws std::invalid_argument for an empty region or a
// number of streams that is not 1, 2, 4, 8 or 16.
double read_bandwidth(const uint8_t* data, int64_t bytes, int streams, double seconds);

// Multiply-adds, counted as two operations, that the pool's threads do in a second on registers: "int8" (dot
// products of bytes, as packed weights use them), "bf16" or "f32". 0 where the level in force has no such
// instruction. Throws std::invalid_argument for another kind.
double operations(std::string_view kind, double seconds);

}  // namespace ktc::limits
