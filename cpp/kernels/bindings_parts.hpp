// The parts of the kernels' bindings.
#pragma once

#include <nanobind/nanobind.h>

namespace ktc::kernels {

void bind_vector(nanobind::module_& m);  // norms, rope, elementwise
void bind_attention(nanobind::module_& m);
void bind_latent(nanobind::module_& m);  // latent attention, routers
void bind_experts(nanobind::module_& m);

}  // namespace ktc::kernels
