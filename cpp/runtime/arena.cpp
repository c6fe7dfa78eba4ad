// Arenas by mmap and madvise, see arena.hpp.
#include "runtime/arena.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "runtime/pool.hpp"
#include "runtime/seats.hpp"

#if defined(__linux__) && !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25  // Linux 6.1; older headers do not name it, older kernels refuse it
#endif

namespace ktc {
namespace {

std::string mebibytes(size_t bytes) {
  char text[64];
  std::snprintf(text, sizeof text, "%zu bytes (%.1f MiB)", bytes, static_cast<double>(bytes) / (1 << 20));
  return text;
}

size_t round_up(size_t value, size_t step) {
  return (value + step - 1) / step * step;
}

}  // namespace

Arena::Arena(size_t capacity) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const std::string what = "an arena of " + mebibytes(capacity) + " cannot be reserved: ";
  if (capacity > SIZE_MAX / 2) throw OutOfMemory(what + "it exceeds the address space");
  capacity_ = round_up(capacity == 0 ? 1 : capacity, kHugePage);
  // A guard page on either side catches overruns and keeps the kernel from merging two arenas' mappings,
  // whose large pages could then not be told apart.
  reserved_ = capacity_ + kHugePage + 2 * page;
  void* reservation = mmap(nullptr, reserved_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reservation == MAP_FAILED) throw OutOfMemory(what + std::strerror(errno));
  reservation_ = reservation;
  base_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(reservation) + page, kHugePage));
  if (mprotect(base_, capacity_, PROT_READ | PROT_WRITE) != 0) {
    const std::string why = std::strerror(errno);
    munmap(reservation_, reserved_);
    throw OutOfMemory(what + why);
  }
#ifdef MADV_HUGEPAGE
  madvise(base_, capacity_, MADV_HUGEPAGE);  // fails on kernels without large pages
#endif
}

Arena::~Arena() {
  munmap(reservation_, reserved_);
}

uint8_t* Arena::allocate(size_t bytes, size_t align) {
  if (align == 0 || (align & (align - 1)) != 0 || align > kHugePage) {
    throw std::invalid_argument("align is " + std::to_string(align) + ", not a power of two up to 2 MiB");
  }
  const std::lock_guard lock(mutex_);
  const size_t start = round_up(used_, align);
  if (start > capacity_ || bytes > capacity_ - start) {
    throw OutOfMemory("the arena has no room for " + mebibytes(bytes) + ": " + mebibytes(used_) + " of " +
                      mebibytes(capacity_) + " are in use");
  }
  used_ = start + bytes;
  return base_ + start;
}

void Arena::place(const uint8_t* data, size_t bytes, int64_t matrices) {
  const size_t offset = static_cast<size_t>(data - base_);
  if (data < base_ || offset > capacity_ || bytes > capacity_ - offset)
    throw std::invalid_argument("memory outside the arena");
  if (matrices < 1 || static_cast<size_t>(matrices) > bytes)
    throw std::invalid_argument("a weight of " + std::to_string(bytes) + " bytes has no " +
                                std::to_string(matrices) + " parts");
  runtime::Pool& pool = runtime::Pool::instance();
  const runtime::Seats seats = pool.seats();
  if (seats.nodes() == 1) return;
  uint8_t* start = base_ + offset;
  const size_t page = runtime::page_of(seats, bytes, matrices);
#ifdef MADV_NOHUGEPAGE
  if (page < kHugePage) {
    const auto begin = reinterpret_cast<uintptr_t>(start) / page * page;
    madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(start) + bytes - begin,
            MADV_NOHUGEPAGE);
    const std::lock_guard lock(mutex_);
    small_pages_ = true;
  }
#endif
  const std::vector<runtime::Touch> touches =
      runtime::first_touches(pool.threads(), reinterpret_cast<uintptr_t>(start), bytes, matrices, page);
  auto touch = [&](int seat) {
    for (const runtime::Touch& piece : touches) {
      if (piece.seat != seat) continue;
      // Writes what is there: a page may hold the end of another weight.
      for (size_t at = piece.begin; at < piece.end; at += page)
        __atomic_fetch_or(start + at, 0, __ATOMIC_RELAXED);
    }
  };
  pool.on_every_thread([](void* context, int seat) { (*static_cast<decltype(touch)*>(context))(seat); },
                       &touch);
}

void Arena::seal() {
#ifdef MADV_COLLAPSE
  const size_t bytes = round_up(used(), kHugePage);
  bool small;
  {
    const std::lock_guard lock(mutex_);
    small = small_pages_;
  }
  // A call ends at the first page that must stay as it is.
  const size_t step = small ? kHugePage : bytes;
  for (size_t at = 0; at < bytes; at += step) madvise(base_ + at, step, MADV_COLLAPSE);
#endif
}

size_t Arena::huge_bytes() const {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen("/proc/self/smaps", "re"), &std::fclose);
  if (!file) return 0;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(base_), end = begin + capacity_;
  bool ours = false;
  size_t total = 0;
  char line[512];
  while (std::fgets(line, sizeof line, file.get()) != nullptr) {
    uintptr_t from, to;
    size_t kib;
    // A mapping's header is the only line that starts with two hexadecimal numbers.
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
      ours = from >= begin && to <= end;
    } else if (ours && std::sscanf(line, "AnonHugePages: %zu kB", &kib) == 1) {
      total += kib << 10;
    }
  }
  return total;
}

size_t Arena::used() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

}  // namespace ktc
