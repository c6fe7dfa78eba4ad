// Reads small texts. C's streams, because where a toolchain links libstdc++ statically into this module, the
// locale facets of C++ streams mix with those of torch's libstdc++ and the first `file >> number` crashes.
#include "runtime/system_text.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace ktc::runtime {

std::string read_text(const std::string& path) {
  std::string text;
  if (std::FILE* file = std::fopen(path.c_str(), "re")) {
    char buffer[4096];
    for (size_t count; (count = std::fread(buffer, 1, sizeof buffer, file)) > 0;) text.append(buffer, count);
    std::fclose(file);
  }
  return text;
}

bool read_number(const std::string& path, long& value) {
  const std::string text = read_text(path);
  char* end = nullptr;
  value = std::strtol(text.c_str(), &end, 10);
  return end != text.c_str();
}

std::vector<int> parse_list(const std::string& text) {
  constexpr long kMost = 1 << 16;
  std::vector<int> found;
  const char* at = text.c_str();
  while (*at >= '0' && *at <= '9') {
    char* end = nullptr;
    const long first = std::strtol(at, &end, 10);
    long last = first;
    if (*end == '-') {
      at = end + 1;
      last = std::strtol(at, &end, 10);
      if (end == at) return {};
    }
    if (first >= kMost || last >= kMost || last < first) return {};
    for (long number = first; number <= last; ++number) found.push_back(static_cast<int>(number));
    at = *end == ',' ? end + 1 : end;
  }
  if (*at != '\0' && *at != '\n') return {};
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

std::string field_of(const std::string& text, const std::string& name) {
  const std::string key = name + ":";
  for (size_t start = 0, end; start < text.size(); start = end + 1) {
    end = std::min(text.find('\n', start), text.size());
    if (text.compare(start, key.size(), key) != 0) continue;
    const size_t from = text.find_first_not_of(" \t", start + key.size());
    if (from == std::string::npos || from >= end) return "";
    return text.substr(from, text.find_last_not_of(" \t\r", end - 1) + 1 - from);
  }
  return "";
}

}  // namespace ktc::runtime
