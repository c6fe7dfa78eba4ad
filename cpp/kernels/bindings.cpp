// Python's view of the kernels.
#include "bindings.hpp"

void ktc::bind_kernels(nanobind::module_&) {}
