// Memory for the activations of the programs that run one after another, such as the phases of one model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "runtime/arena.hpp"

namespace ktc::program {

class Workspace {
 public:
  // At least `bytes` bytes at a multiple of 2 MiB, on large pages where the system has them; earlier memory
  // is given back when it must grow. Hold `mutex` from here on until the last use. Throws OutOfMemory.
  uint8_t* get(size_t bytes) {
    if (!arena_ || arena_->capacity() < bytes) {
      arena_.reset();
      arena_ = std::make_unique<Arena>(bytes);
    }
    return arena_->base();
  }

  // Bytes it holds now.
  size_t capacity() const { return arena_ ? arena_->capacity() : 0; }

  std::mutex mutex;

 private:
  std::unique_ptr<Arena> arena_;
};

}  // namespace ktc::program
