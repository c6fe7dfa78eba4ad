// Python's view of the arenas.
#include "bindings.hpp"

void ktc::bind_arena(nanobind::module_&) {}
