// Scratch memory by thread.
#include "kernels/scratch.hpp"

#include <algorithm>
#include <new>

namespace ktc::kernels {
namespace {
constexpr std::align_val_t kAlign{64};
}

Scratch::~Scratch() {
  ::operator delete(memory_, kAlign);
}

uint8_t* Scratch::get(size_t bytes) {
  if (bytes > size_) {
    const size_t wanted = std::max(bytes, size_ + size_ / 2);
    ::operator delete(memory_, kAlign);
    memory_ = nullptr;
    size_ = 0;
    memory_ = static_cast<uint8_t*>(::operator new(wanted, kAlign));
    size_ = wanted;
  }
  return memory_;
}

Scratch& caller_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

Scratch& worker_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

}  // namespace ktc::kernels
