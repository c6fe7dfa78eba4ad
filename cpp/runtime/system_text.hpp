// Small texts of /proc and /sys.
#pragma once

#include <string>
#include <vector>

namespace ktc::runtime {

// A file's text; "" if it cannot be read.
std::string read_text(const std::string& path);

// Whether the file starts with a number, and the number.
bool read_number(const std::string& path, long& value);

// The numbers of a list such as "0-3,8", ascending, none twice; empty for anything that is no list. At most
// 65536 numbers.
std::vector<int> parse_list(const std::string& text);

// What follows "NAME:" on its line of a text such as /proc/self/status, without blanks; "" without it.
std::string field_of(const std::string& text, const std::string& name);

}  // namespace ktc::runtime
