// pybind11 bindings of the CUDA rasterizer: addresses, sizes and a stream in, nothing else.
#include <pybind11/pybind11.h>

#include "bindings.h"

namespace py = pybind11;
using namespace ddpo3d_fast;

void bind_cuda_rasterizer(py::module_ &module) {
  py::class_<RasterizeMemory>(module, "RasterizeMemory", py::module_local())
      .def(py::init([](std::uintptr_t state, std::uintptr_t entries, int64_t max_entries) {
             return RasterizeMemory{pointer<void>(state), pointer<void>(entries), max_entries};
           }),
           py::kw_only(), py::arg("state"), py::arg("entries"), py::arg("max_entries"));

  module.def("rasterize_state_bytes_cuda", &rasterize_state_bytes_cuda, py::arg("params"));
  module.def("rasterize_entries_bytes_cuda", &rasterize_entries_bytes_cuda, py::arg("max_entries"));
  module.def("rasterize_scratch_bytes_cuda", &rasterize_scratch_bytes_cuda, py::arg("params"),
             py::arg("max_entries"));

  module.def(
      "rasterize_project_cuda",
      [](const RasterizeParams &params, const RasterizeMemory &memory, std::uintptr_t radii,
         std::uintptr_t box_radii, std::uintptr_t needed, std::uintptr_t stream) {
        py::gil_scoped_release release;
        rasterize_project_cuda(
            params, {nullptr, nullptr, nullptr, pointer<int32_t>(radii), pointer<int32_t>(box_radii)},
            pointer<uint64_t>(needed), memory, pointer<void>(stream));
      },
      py::arg("params"), py::arg("memory"), py::kw_only(), py::arg("radii"), py::arg("box_radii"),
      py::arg("needed"), py::arg("stream"));

  module.def(
      "rasterize_blend_cuda",
      [](const RasterizeParams &params, const RasterizeMemory &memory, std::uintptr_t rgb,
         std::uintptr_t alpha, std::uintptr_t depth, std::uintptr_t stream) {
        py::gil_scoped_release release;
        rasterize_blend_cuda(
            params, {pointer<float>(rgb), pointer<float>(alpha), pointer<float>(depth), nullptr, nullptr},
            memory, pointer<void>(stream));
      },
      py::arg("params"), py::arg("memory"), py::kw_only(), py::arg("rgb"), py::arg("alpha"), py::arg("depth"),
      py::arg("stream"));

  module.def(
      "rasterize_backward_cuda",
      [](const RasterizeParams &params, const RasterizeMemory &memory, std::uintptr_t grad_rgb,
         std::uintptr_t grad_alpha, std::uintptr_t grad_depth, float opacity_penalty, std::uintptr_t means,
         std::uintptr_t quats, std::uintptr_t scales, std::uintptr_t opacities, std::uintptr_t colors,
         std::uintptr_t backgrounds, std::uintptr_t viewmats, std::uintptr_t means2d,
         std::uintptr_t means2d_abs, std::uintptr_t covariances2d, std::uintptr_t depths,
         std::uintptr_t scratch, std::uintptr_t stream) {
        py::gil_scoped_release release;
        rasterize_backward_cuda(params,
                                {pointer<const float>(grad_rgb), pointer<const float>(grad_alpha),
                                 pointer<const float>(grad_depth), opacity_penalty},
                                {pointer<float>(means), pointer<float>(quats), pointer<float>(scales),
                                 pointer<float>(opacities), pointer<float>(colors),
                                 pointer<float>(backgrounds), pointer<float>(viewmats),
                                 pointer<float>(means2d), pointer<float>(means2d_abs),
                                 pointer<float>(covariances2d), pointer<float>(depths)},
                                memory, pointer<void>(scratch), pointer<void>(stream));
      },
      py::arg("params"), py::arg("memory"), py::kw_only(), py::arg("grad_rgb"), py::arg("grad_alpha"),
      py::arg("grad_depth"), py::arg("opacity_penalty"), py::arg("means"), py::arg("quats"),
      py::arg("scales"), py::arg("opacities"), py::arg("colors"), py::arg("backgrounds"), py::arg("viewmats"),
      py::arg("means2d"), py::arg("means2d_abs"), py::arg("covariances2d"), py::arg("depths"),
      py::arg("scratch"), py::arg("stream"));
}
