// The measured loops for AMX: products of byte and bf16 tiles.
#include "isa/tiles.inl.hpp"
#include "limits/loops_avx512.inl.hpp"

namespace ktc::limits {
namespace {

constexpr int kTiles = 8;

// All tiles of 16 rows of 64 bytes, zeroed: what they hold does not change how long a product takes.
void configure() {
  isa::TileConfiguration tiles;
  for (int i = 0; i < kTiles; ++i) tiles.set(i, 16);
  isa::load_configuration(tiles);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

// Two by two blocks, as kernels use them: tiles 0 to 3 are sums, 4 and 5 hold rows of x, 6 and 7 weights.
double int8(int64_t rounds) {
  configure();
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_release();
  return static_cast<double>(rounds) * 4 * 16 * 16 * 64 * 2;
}

double bf16(int64_t rounds) {
  configure();
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return static_cast<double>(rounds) * 4 * 16 * 16 * 32 * 2;
}

}  // namespace

extern const Loops loops_amx;
const Loops loops_amx = {read<Lanes>, int8, bf16, f32};

}  // namespace ktc::limits
