// Python's view of the arenas. ktc/runtime/arena.py makes torch tensors of it.
#include <nanobind/ndarray.h>

#include "bindings.hpp"
#include "runtime/arena.hpp"

namespace nb = nanobind;

namespace ktc {
namespace {

using Buffer = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>, nb::c_contig>;

// The array owns a reference to the arena, so that the memory lives as long as any view of it.
Buffer allocate(nb::handle_t<Arena> self, size_t bytes, size_t align) {
  uint8_t* data = nb::cast<Arena&>(self).allocate(bytes, align);
  return Buffer(data, {bytes}, self);
}

}  // namespace

void bind_arena(nb::module_& m) {
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const OutOfMemory& error) {
      PyErr_SetString(PyExc_MemoryError, error.what());
    }
  });
  nb::class_<Arena>(m, "Arena",
                    "Memory for one device's weights: one reservation on 2 MiB pages where the system\n"
                    "grants them, handed out front to back and freed as a whole.")
      .def(nb::init<size_t>(), nb::arg("capacity"),
           "Reserves at least `capacity` bytes; they take memory when they are first written.\n\n"
           "Raises:\n    MemoryError: the system cannot reserve them.")
      .def("allocate", &allocate, nb::arg("nbytes"), nb::arg("align") = 64,
           "The next `nbytes` bytes, zeroed, as a writable uint8 array that keeps the arena alive.\n\n"
           "Raises:\n    MemoryError: they do not fit; the text has the sizes.\n"
           "    ValueError: `align` is no power of two up to 2 MiB.")
      .def(
          "place",
          [](Arena& arena, uintptr_t address, size_t bytes, int64_t matrices) {
            arena.place(reinterpret_cast<const uint8_t*>(address), bytes, matrices);
          },
          nb::arg("address"), nb::arg("nbytes"), nb::arg("matrices") = 1,
          nb::call_guard<nb::gil_scoped_release>(),
          "Before a weight of `matrices` equal parts is written there: on a machine with several NUMA nodes\n"
          "the threads that will read its pages touch them first.\n\n"
          "Raises:\n    ValueError: memory outside the arena, or more parts than bytes.")
      .def("seal", &Arena::seal, nb::call_guard<nb::gil_scoped_release>(),
           "Asks the system to move what is allocated to large pages, once it is loaded.")
      .def("huge_bytes", &Arena::huge_bytes, nb::call_guard<nb::gil_scoped_release>(),
           "How many bytes lie on large pages now; 0 where the system does not tell.")
      .def_prop_ro("capacity", &Arena::capacity, "Bytes reserved, a multiple of 2 MiB.")
      .def_prop_ro("used", &Arena::used, "Bytes handed out, with the gaps of alignment.");
}

}  // namespace ktc
