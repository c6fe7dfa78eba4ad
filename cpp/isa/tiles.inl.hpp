// The configuration of AMX tiles; for sources with the suffix _amx.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace ktc::isa {
namespace {

// As the processor reads it: palette 1, then bytes a row and rows of each of the 8 tiles.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int tile_rows) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = 64;
  }
};

inline void load_configuration(const TileConfiguration& tiles) {
  // GCC's intrinsic claims to read 8 bytes only, so that it leaves stores to the others out.
  asm volatile("" : : "r"(&tiles) : "memory");
  _tile_loadconfig(&tiles);
}

}  // namespace
}  // namespace ktc::isa
