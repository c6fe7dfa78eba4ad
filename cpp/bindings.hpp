// What each subsystem contributes to the Python module; every function is defined in <folder>/bindings.cpp.
#pragma once
#include <nanobind/nanobind.h>

namespace ktc {
void bind_isa(nanobind::module_& m);         // isa/: cpuid, KTC_CPU_ISA, dispatch level
void bind_formats(nanobind::module_& m);     // formats/: dequantise and quantise
void bind_arena(nanobind::module_& m);       // runtime/: huge-page arenas
void bind_pool(nanobind::module_& m);        // runtime/: the thread pool
void bind_pool_tests(nanobind::module_& m);  // what its tests call; by bind_pool
void bind_limits(nanobind::module_& m);      // limits/: the machine's measured limits
void bind_kernels(nanobind::module_& m);     // kernels/: linear, norms, rope, attention, ...
void bind_program(nanobind::module_& m);     // program/: native programs
}  // namespace ktc
