// Which instruction-set level runs: what the machine and its operating system support, capped by KTC_CPU_ISA.
#pragma once

#include <string_view>
#include <vector>

namespace ktc::isa {

// Each level implies those before it.
enum class Level : int {
  generic = 0,     // the platform's baseline
  avx2 = 1,        // AVX2, FMA, F16C, BMI2
  avx512 = 2,      // AVX-512 F, BW, VL, DQ
  avx512vnni = 3,  // AVX-512 VNNI, BF16, VBMI
  amx = 4,         // AMX tiles, INT8, BF16, which the operating system grants on request
};
inline constexpr int kLevels = 5;

// The level's name as in KTC_CPU_ISA and in the suffix of source files.
const char* name(Level level);

// The level called `text`; throws std::runtime_error which lists the names when there is none.
Level parse(std::string_view text);

// The highest level that processor and operating system support; KTC_CPU_ISA plays no part.
Level machine();

// The level in force: machine(), lowered by KTC_CPU_ISA or by set(). The variable is read once, at the first
// call. Throws std::runtime_error when it names an unknown level or one that the machine lacks.
Level current();

// Puts another level in force, for tests; throws std::runtime_error for one that the machine lacks.
void set(Level level);

// One pointer per level, null where a level adds nothing; the highest one that is in force gets called.
template <typename Function>
struct Dispatch {
  Function* generic = nullptr;
  Function* avx2 = nullptr;
  Function* avx512 = nullptr;
  Function* avx512vnni = nullptr;
  Function* amx = nullptr;

  Function* pick() const {
    const int level = static_cast<int>(current());
    if (level >= static_cast<int>(Level::amx) && amx) return amx;
    if (level >= static_cast<int>(Level::avx512vnni) && avx512vnni) return avx512vnni;
    if (level >= static_cast<int>(Level::avx512) && avx512) return avx512;
    if (level >= static_cast<int>(Level::avx2) && avx2) return avx2;
    return generic;
  }
};

}  // namespace ktc::isa
