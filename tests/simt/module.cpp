// The Python module _simt: the emulated CUDA functions under the names they have in ddpo3d_fast._C, and what
// controls the emulator. build.py defines which rooms there are.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "simt/control.h"

#ifdef DDPO3D_SIMT_WITH_RASTERIZER
#include "bindings.h"
#endif

namespace py = pybind11;

void bind_cuda_rasterizer(py::module_ &module);
void bind_cuda_diffusion(py::module_ &module);
void bind_cuda_mesh(py::module_ &module);
void bind_cuda_under_test(py::module_ &module); // the emulator's own tests

namespace {

void set_order(uint64_t seed, const std::string &blocks) {
  if (blocks == "in_order")
    simt::set_order(seed, simt::BlockOrder::in_order);
  else if (blocks == "shuffled")
    simt::set_order(seed, simt::BlockOrder::shuffled);
  else if (blocks == "interleaved")
    simt::set_order(seed, simt::BlockOrder::interleaved);
  else
    throw py::value_error("blocks: expected 'in_order', 'shuffled' or 'interleaved', got '" + blocks + "'");
}

py::dict counters() {
  const simt::Counters counters = simt::counters();
  py::dict dict;
  dict["launches"] = counters.launches;
  dict["synchronizations"] = counters.synchronizations;
  dict["copies"] = counters.copies;
  dict["memsets"] = counters.memsets;
  dict["allocations"] = counters.allocations;
  return dict;
}

} // namespace

PYBIND11_MODULE(DDPO3D_SIMT_MODULE, module) {
  module.def("set_order", &set_order, py::arg("seed"), py::arg("blocks") = "in_order",
             "How all later launches run: threads in order for seed 0, else at random; blocks 'in_order', "
             "'shuffled' or 'interleaved' (several alive at a time).");
  module.def("reset_counters", &simt::reset_counters);
  module.def("counters", &counters,
             "Since the last reset: launches (the kernels' names), synchronizations, copies, memsets, "
             "allocations.");
#ifdef DDPO3D_SIMT_WITH_RASTERIZER
  bind_cuda_rasterizer(module);
  if (!py::hasattr(module, "RasterizeParams"))
    ddpo3d_fast::bind_rasterize_params(module);
#endif
#ifdef DDPO3D_SIMT_WITH_DIFFUSION
  bind_cuda_diffusion(module);
#endif
#ifdef DDPO3D_SIMT_WITH_MESH
  bind_cuda_mesh(module);
#endif
#ifdef DDPO3D_SIMT_WITH_UNDER_TEST
  bind_cuda_under_test(module);
#endif
}
