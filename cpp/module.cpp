// The nanobind module ktc._cpu: each subsystem adds its own bindings here.
#include "bindings.hpp"

NB_MODULE(_cpu, m) {
  // Tensors that view an arena may live until the interpreter ends, and keep the arena with them: no fault to
  // report.
  nanobind::set_leak_warnings(false);
  m.doc() = "ktc's C++ kernels and runtime for CPUs";
  ktc::bind_isa(m);
  ktc::bind_formats(m);
  ktc::bind_arena(m);
  ktc::bind_pool(m);
  ktc::bind_limits(m);
  ktc::bind_kernels(m);
  ktc::bind_program(m);
}
