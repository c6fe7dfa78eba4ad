// Python's view of the number formats.
#include "bindings.hpp"

void ktc::bind_formats(nanobind::module_&) {}
