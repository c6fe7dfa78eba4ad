// What the binding sources of the kernels share.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace ktc::kernels {

// Python passes addresses as whole numbers.
template <typename T>
T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

}  // namespace ktc::kernels
