// Aligned memory that a thread keeps between calls of kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ktc::kernels {

// Grows when needed, freed when the thread ends. Contents do not survive a call of get.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // At least `bytes` bytes, 64-byte aligned; throws std::bad_alloc.
  uint8_t* get(size_t bytes);

 private:
  uint8_t* memory_ = nullptr;
  size_t size_ = 0;
};

// The calling thread's scratch for what an operator prepares before its parallel loop, and for a loop's body.
// A body may run on the calling thread, so the two are apart.
Scratch& caller_scratch();
Scratch& worker_scratch();

}  // namespace ktc::kernels
