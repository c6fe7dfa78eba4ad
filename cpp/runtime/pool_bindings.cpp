// Python's view of the thread pool.
#include "bindings.hpp"

void ktc::bind_pool(nanobind::module_&) {}
