// Memory for the weights of one device: one reservation on 2 MiB pages, handed out front to back, freed as a
// whole.
//
// Large pages save address translation: 1.2 to 1.3 times the read bandwidth on the virtual machines we
// measured, and nothing on others. Where the system grants none, everything works on ordinary pages;
// huge_bytes() tells.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

namespace ktc {

// The arena, or the system, has not the memory asked for. MemoryError in Python.
class OutOfMemory : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Arena {
 public:
  static constexpr size_t kHugePage = size_t{2} << 20;

  // Reserves at least `capacity` bytes at a multiple of 2 MiB; they take memory when they are first written,
  // on the NUMA node of the thread that writes. Throws OutOfMemory when the address range cannot be had.
  explicit Arena(size_t capacity);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // The next `bytes` bytes, zeroed, at a multiple of `align`. Thread-safe. Throws OutOfMemory when they do
  // not fit and std::invalid_argument unless `align` is a power of two up to 2 MiB.
  uint8_t* allocate(size_t bytes, size_t align);

  // For memory of this arena that nothing was written to yet and that will hold a weight of `matrices` equal
  // parts (experts): on a machine with several NUMA nodes, the threads that will read it in the pool's loops
  // touch their pages of it first (see seats.hpp), so that they lie on their nodes. Elsewhere it does
  // nothing. Throws std::invalid_argument for memory outside the arena or less than one part.
  void place(const uint8_t* data, size_t bytes, int64_t matrices);

  // Asks the system to move what has been allocated to large pages, once it is loaded; quietly does what it
  // can.
  void seal();

  // How much of the arena lies on large pages now; 0 where the system does not tell.
  size_t huge_bytes() const;

  uint8_t* base() const { return base_; }
  size_t capacity() const { return capacity_; }
  size_t used() const;

 private:
  uint8_t* base_ = nullptr;      // multiple of kHugePage
  size_t capacity_ = 0;          // multiple of kHugePage
  void* reservation_ = nullptr;  // base_ and guard pages
  size_t reserved_ = 0;
  mutable std::mutex mutex_;
  size_t used_ = 0;
  bool small_pages_ = false;  // some of it must stay on ordinary pages
};

}  // namespace ktc
