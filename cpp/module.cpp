// The nanobind module ktc._cpu: each subsystem adds its own bindings here.
#include "bindings.hpp"

NB_MODULE(_cpu, m) {
  m.doc() = "ktc's C++ kernels and runtime for CPUs";
  ktc::bind_isa(m);
  ktc::bind_formats(m);
  ktc::bind_arena(m);
  ktc::bind_pool(m);
  ktc::bind_kernels(m);
}
