// The measured loops, one table an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ktc::limits {

struct Loops {
  // Reads `bytes` bytes (a multiple of 16 * 128) at `data` from `streams` places at a time. The sum keeps the
  // compiler from leaving the loads out.
  uint64_t (*read)(const uint8_t* data, size_t bytes, int streams);
  // `rounds` rounds of independent multiply-adds; returns the operations done. Null: no such instruction.
  double (*int8)(int64_t rounds);
  double (*bf16)(int64_t rounds);
  double (*f32)(int64_t rounds);
};

extern const Loops loops_generic;
#ifdef KTC_X86
extern const Loops loops_avx2;
extern const Loops loops_avx512;
extern const Loops loops_avx512vnni;
#endif
#ifdef KTC_AMX
extern const Loops loops_amx;
#endif

}  // namespace ktc::limits
