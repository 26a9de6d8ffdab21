// pybind11: addresses and sizes in, nothing else. The shapes were checked in Python.
#include <pybind11/pybind11.h>

#ifdef DDPO3D_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include <cstdint>
#include <string>

#include "bindings.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"
#include "ddpo3d_fast/rasterizer.h"

namespace py = pybind11;
using namespace ddpo3d_fast;

void bind_diffusion(py::module_ &module);
void bind_mesh(py::module_ &module);
#ifdef DDPO3D_WITH_CUDA
void bind_cuda_rasterizer(py::module_ &module);
void bind_cuda_diffusion(py::module_ &module);
void bind_cuda_mesh(py::module_ &module);
#endif

namespace {

void bind_rasterizer(py::module_ &module) {
  bind_rasterize_params(module);

  py::class_<RasterizeState>(module, "RasterizeState").def(py::init<>());

  module.def(
      "rasterize_forward_cpu",
      [](const RasterizeParams &params, RasterizeState &state, std::uintptr_t rgb, std::uintptr_t alpha,
         std::uintptr_t depth, std::uintptr_t radii, std::uintptr_t box_radii, int64_t max_entries) {
        py::gil_scoped_release release;
        return rasterize_forward_cpu(params,
                                     {pointer<float>(rgb), pointer<float>(alpha), pointer<float>(depth),
                                      pointer<int32_t>(radii), pointer<int32_t>(box_radii)},
                                     max_entries, state);
      },
      py::arg("params"), py::arg("state"), py::kw_only(), py::arg("rgb"), py::arg("alpha"), py::arg("depth"),
      py::arg("radii"), py::arg("box_radii"), py::arg("max_entries"));

  module.def("rasterize_entries_bytes_cpu", &rasterize_entries_bytes_cpu, py::arg("entries"));

  module.def(
      "rasterize_features_cpu",
      [](const RasterizeParams &params, const RasterizeState &state, std::uintptr_t features,
         int64_t num_features, std::uintptr_t out) {
        py::gil_scoped_release release;
        rasterize_features_cpu(params, pointer<const float>(features), num_features, pointer<float>(out),
                               state);
      },
      py::arg("params"), py::arg("state"), py::kw_only(), py::arg("features"), py::arg("num_features"),
      py::arg("out"));

  module.def(
      "rasterize_backward_cpu",
      [](const RasterizeParams &params, const RasterizeState &state, std::uintptr_t grad_rgb,
         std::uintptr_t grad_alpha, std::uintptr_t grad_depth, float opacity_penalty, std::uintptr_t means,
         std::uintptr_t quats, std::uintptr_t scales, std::uintptr_t opacities, std::uintptr_t colors,
         std::uintptr_t backgrounds, std::uintptr_t viewmats, std::uintptr_t means2d,
         std::uintptr_t means2d_abs, std::uintptr_t covariances2d, std::uintptr_t depths) {
        py::gil_scoped_release release;
        rasterize_backward_cpu(params,
                               {pointer<const float>(grad_rgb), pointer<const float>(grad_alpha),
                                pointer<const float>(grad_depth), opacity_penalty},
                               {pointer<float>(means), pointer<float>(quats), pointer<float>(scales),
                                pointer<float>(opacities), pointer<float>(colors),
                                pointer<float>(backgrounds), pointer<float>(viewmats),
                                pointer<float>(means2d), pointer<float>(means2d_abs),
                                pointer<float>(covariances2d), pointer<float>(depths)},
                               state);
      },
      py::arg("params"), py::arg("state"), py::kw_only(), py::arg("grad_rgb"), py::arg("grad_alpha"),
      py::arg("grad_depth"), py::arg("opacity_penalty"), py::arg("means"), py::arg("quats"),
      py::arg("scales"), py::arg("opacities"), py::arg("colors"), py::arg("backgrounds"), py::arg("viewmats"),
      py::arg("means2d"), py::arg("means2d_abs"), py::arg("covariances2d"), py::arg("depths"));
}

} // namespace

PYBIND11_MODULE(_C, module) {
  bind_rasterizer(module);
  module.def("num_threads", &num_threads);
  module.def("set_num_threads", &set_num_threads);
  module.def("simd_level", [] { return std::string(name_of(simd_level())); });
  module.def("compiler", [] { return std::string(__VERSION__); });
#ifdef DDPO3D_WITH_CUDA
  module.attr("with_cuda") = true;
  module.attr("cuda_targets") = DDPO3D_CUDA_TARGETS;
  module.attr("cuda_toolkit") = CUDART_VERSION;
  module.def("cuda_driver", [] {
    int version = 0; // stays 0 where there is no driver
    cudaDriverGetVersion(&version);
    return version;
  });
  bind_cuda_rasterizer(module);
  bind_cuda_diffusion(module);
  bind_cuda_mesh(module);
#else
  module.attr("with_cuda") = false;
#endif
  bind_diffusion(module);
  bind_mesh(module);
}
