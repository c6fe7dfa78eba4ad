// Detects the machine's level with cpuid and xgetbv, and applies KTC_CPU_ISA.
#include "isa/isa.hpp"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

#if KTC_X86
#include <cpuid.h>
#endif
#if KTC_AMX && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ktc::isa {
namespace {

constexpr const char* kNames[kLevels] = {"generic", "avx2", "avx512", "avx512vnni", "amx"};
constexpr int kUnset = -1;
std::atomic<int> in_force{kUnset};

#if KTC_X86
struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  // Answers zeros above the highest leaf the processor has.
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

// The register states that the operating system saves; needs OSXSAVE.
uint64_t saved_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool has(uint32_t word, std::initializer_list<int> bits) {
  for (int bit : bits) {
    if ((word >> bit & 1u) == 0) return false;
  }
  return true;
}

// Asks for the right to use tile registers, which Linux gives to a whole process (since 5.16); without it the
// first tile instruction ends the process.
bool tiles_granted() {
#if KTC_AMX && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Level detect() {
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6;  // SSE and AVX; also opmask and both halves of zmm
  constexpr uint64_t kTiles = 0x60000;         // tile configuration and data
  const Registers basic = cpuid(1, 0);
  if (!has(basic.ecx, {12, 27, 28, 29})) return Level::generic;  // FMA, OSXSAVE, AVX, F16C
  const uint64_t states = saved_states();
  const Registers features = cpuid(7, 0);
  if ((states & kYmm) != kYmm || !has(features.ebx, {5, 8})) return Level::generic;         // AVX2, BMI2
  if ((states & kZmm) != kZmm || !has(features.ebx, {16, 17, 30, 31})) return Level::avx2;  // F, DQ, BW, VL
  const Registers more = cpuid(7, 1);
  if (!has(features.ecx, {1, 11}) || !has(more.eax, {5})) return Level::avx512;  // VBMI, VNNI; BF16
  if ((states & kTiles) != kTiles || !has(features.edx, {22, 24, 25}))
    return Level::avx512vnni;  // BF16, TILE, INT8
  return tiles_granted() ? Level::amx : Level::avx512vnni;
}
#else
Level detect() {
  return Level::generic;
}
#endif

std::string available() {
  std::string text;
  for (int i = 0; i <= static_cast<int>(machine()); ++i) text += (i ? ", " : "") + std::string(kNames[i]);
  return text;
}

[[noreturn]] void fail_lacking(const std::string& who, Level level) {
  throw std::runtime_error(who + ": this machine lacks the instruction-set level '" + name(level) +
                           "'; it has " + available());
}

// The number of the level called `text`, or kUnset.
int find(std::string_view text) {
  for (int i = 0; i < kLevels; ++i) {
    if (text == kNames[i]) return i;
  }
  return kUnset;
}

int from_environment() {
  const char* text = std::getenv("KTC_CPU_ISA");
  if (text == nullptr || *text == '\0') return static_cast<int>(machine());
  const std::string who = std::string("KTC_CPU_ISA=") + text;
  const int level = find(text);
  if (level == kUnset) {
    throw std::runtime_error(who + " names no instruction-set level; this machine has " + available());
  }
  if (level > static_cast<int>(machine())) fail_lacking(who, static_cast<Level>(level));
  return level;
}

}  // namespace

const char* name(Level level) {
  return kNames[static_cast<int>(level)];
}

Level parse(std::string_view text) {
  const int level = find(text);
  if (level == kUnset) {
    throw std::runtime_error("'" + std::string(text) + "' is no instruction-set level; this machine has " +
                             available());
  }
  return static_cast<Level>(level);
}

Level machine() {
  static const Level level = detect();
  return level;
}

Level current() {
  int level = in_force.load(std::memory_order_relaxed);
  if (level == kUnset) {
    level = from_environment();
    in_force.store(level, std::memory_order_relaxed);
  }
  return static_cast<Level>(level);
}

void set(Level level) {
  if (level > machine()) fail_lacking("set_isa", level);
  in_force.store(static_cast<int>(level), std::memory_order_relaxed);
}

}  // namespace ktc::isa
