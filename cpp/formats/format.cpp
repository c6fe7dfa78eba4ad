// The table of number formats; tests compare it with the sizes in the gguf package (fp8 is ours).
#include "formats/format.hpp"

#include <stdexcept>
#include <string>

namespace ktc {
namespace {

constexpr FormatInfo kInfo[kFormats] = {
    {"f32", 1, 4},      {"f16", 1, 2},      {"bf16", 1, 2},     {"q4_0", 32, 18},   {"q4_1", 32, 20},
    {"q5_0", 32, 22},   {"q5_1", 32, 24},   {"q8_0", 32, 34},   {"q2_k", 256, 84},  {"q3_k", 256, 110},
    {"q4_k", 256, 144}, {"q5_k", 256, 176}, {"q6_k", 256, 210}, {"iq4_nl", 32, 18}, {"iq4_xs", 256, 136},
    {"mxfp4", 32, 17},  {"fp8", 128, 132},
};

}  // namespace

const FormatInfo& info(Format format) {
  return kInfo[static_cast<int>(format)];
}

Format parse_format(std::string_view name) {
  for (int i = 0; i < kFormats; ++i) {
    if (name == kInfo[i].name) return static_cast<Format>(i);
  }
  std::string text = "unknown number format '" + std::string(name) + "'; there are";
  for (int i = 0; i < kFormats; ++i) text += std::string(i ? ", " : " ") + kInfo[i].name;
  throw std::invalid_argument(text);
}

}  // namespace ktc
