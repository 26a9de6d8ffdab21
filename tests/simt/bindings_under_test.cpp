// pybind11 bindings of kernels_under_test.h: addresses and sizes in; kinds of bugs by their number.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "kernels_under_test.h"

namespace py = pybind11;
using namespace under_test;

namespace {

using Address = uintptr_t;
using Size3 = std::array<unsigned, 3>;

template <class T> T *pointer(Address address) { return reinterpret_cast<T *>(address); }

// Names the values of an enumeration 0, 1, 2, ...
void name(py::module_ &module, const char *enumeration, std::initializer_list<const char *> names) {
  py::dict values;
  for (const char *name : names)
    values[name] = values.size();
  module.attr(enumeration) = values;
}

} // namespace

void bind_cuda_under_test(py::module_ &module) {
  name(module, "MatmulBug", {"none", "no_barrier_after_load", "no_barrier_before_next_load"});
  name(module, "SumBug", {"none", "no_barrier"});
  name(module, "ExchangeBug", {"none", "no_syncwarp_before_read", "no_syncwarp_after_read"});
  name(module, "Fault",
       {"deadlock", "divergent_barriers", "barrier_in_branch", "not_in_mask", "different_warp_ops",
        "different_masks", "lane_missing", "bad_width", "endless_wait", "trap", "too_much_shared"});
  name(module, "OutOfBounds",
       {"none", "static_array", "static_shared", "dynamic_shared", "global_read", "global_write",
        "misaligned"});

  module.def("matmul", [](Address a, Address b, Address c, int n, int bug) {
    matmul(pointer<float>(a), pointer<float>(b), pointer<float>(c), n, MatmulBug(bug));
  });
  module.def("sum", [](Address values, int n, Address sums, int blocks, int threads, int bug) {
    sum(pointer<int>(values), n, pointer<int>(sums), blocks, threads, SumBug(bug));
  });
  module.def("exchange", [](Address in, Address out, int n, int bug) {
    exchange(pointer<int>(in), pointer<int>(out), n, ExchangeBug(bug));
  });
  module.def("sum_by_last_block",
             [](Address values, int n, Address block_sums, Address counter, Address out) {
               sum_by_last_block(pointer<float>(values), n, pointer<float>(block_sums),
                                 pointer<unsigned>(counter), pointer<float>(out));
             });
  module.def("hand_on", [](Address tickets, Address token, Address out, int blocks) {
    hand_on(pointer<unsigned>(tickets), pointer<unsigned>(token), pointer<unsigned>(out), blocks);
  });
  module.def("chain", [](Address values, int blocks) { chain(pointer<int>(values), blocks); });
  module.def("lost_update", [](Address total, int blocks, int rounds) {
    lost_update(pointer<unsigned>(total), blocks, rounds);
  });
  module.def("fault", [](int kind, int blocks, int threads) { fault(Fault(kind), blocks, threads); });
  module.def("out_of_bounds", [](int where, Address values, int n) {
    out_of_bounds(OutOfBounds(where), pointer<float>(values), n);
  });
  module.def("warp_operations", [](Address values, Address out, int width) {
    warp_operations(pointer<double>(values), pointer<double>(out), width);
  });
  module.def("partial_warp", [](Address out) { partial_warp(pointer<unsigned>(out)); });
  module.def("block_votes", [](Address predicates, Address out, int threads) {
    block_votes(pointer<int>(predicates), pointer<int>(out), threads);
  });
  module.def("indices", [](Address out, Size3 grid, Size3 block) {
    indices(pointer<int>(out), grid.data(), block.data());
  });
  module.def("uninitialised", [](Address out) { uninitialised(pointer<unsigned>(out)); });
  module.def("atomics", [](Address out, Address wide, int threads) {
    atomics(pointer<unsigned>(out), pointer<unsigned long long>(wide), threads);
  });
  module.def("half_to_float", [](Address in, Address out, int n) {
    half_to_float(pointer<uint16_t>(in), pointer<float>(out), n);
  });
  module.def("float_to_half", [](Address in, Address out, int n) {
    float_to_half(pointer<float>(in), pointer<uint16_t>(out), n);
  });
  module.def("bfloat16_to_float", [](Address in, Address out, int n) {
    bfloat16_to_float(pointer<uint16_t>(in), pointer<float>(out), n);
  });
  module.def("float_to_bfloat16", [](Address in, Address out, int n) {
    float_to_bfloat16(pointer<float>(in), pointer<uint16_t>(out), n);
  });
  module.def("sizes", [](Size3 grid, Size3 block, size_t dynamic_shared_bytes, bool allow_shared) {
    sizes(grid.data(), block.data(), dynamic_shared_bytes, allow_shared);
  });
  module.def("runtime_calls", [](Address out, int byte) { runtime_calls(pointer<unsigned>(out), byte); });
}
