// pybind11: addresses and sizes in, nothing else. The shapes were checked in Python.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "cpu/parallel.h"
#include "cpu/simd_level.h"
#include "ddpo3d_fast/rasterizer.h"

namespace py = pybind11;
using namespace ddpo3d_fast;

#ifdef DDPO3D_WITH_DIFFUSION
void bind_diffusion(py::module_ &module);
#endif

namespace {

template <class T> T *pointer(std::uintptr_t address) { return reinterpret_cast<T *>(address); }

void bind_rasterizer(py::module_ &module) {
  py::class_<RasterizeParams>(module, "RasterizeParams")
      .def(
          py::init([](int64_t num_gaussians, int64_t num_cameras, int64_t width, int64_t height,
                      int sh_degree, bool antialiased, float near, float far, int64_t color_stride,
                      std::uintptr_t means, std::uintptr_t quats, std::uintptr_t scales,
                      std::uintptr_t opacities, std::uintptr_t colors, std::uintptr_t viewmats,
                      std::uintptr_t intrinsics, std::uintptr_t backgrounds, std::uintptr_t means2d_offsets) {
            RasterizeParams p;
            p.num_gaussians = num_gaussians;
            p.num_cameras = num_cameras;
            p.width = width;
            p.height = height;
            p.sh_degree = sh_degree;
            p.antialiased = antialiased;
            p.near = near;
            p.far = far;
            p.color_stride = color_stride;
            p.means = pointer<const float>(means);
            p.quats = pointer<const float>(quats);
            p.scales = pointer<const float>(scales);
            p.opacities = pointer<const float>(opacities);
            p.colors = pointer<const float>(colors);
            p.viewmats = pointer<const float>(viewmats);
            p.intrinsics = pointer<const float>(intrinsics);
            p.backgrounds = pointer<const float>(backgrounds);
            p.means2d_offsets = pointer<const float>(means2d_offsets);
            return p;
          }),
          py::kw_only(), py::arg("num_gaussians"), py::arg("num_cameras"), py::arg("width"),
          py::arg("height"), py::arg("sh_degree"), py::arg("antialiased"), py::arg("near"), py::arg("far"),
          py::arg("color_stride"), py::arg("means"), py::arg("quats"), py::arg("scales"),
          py::arg("opacities"), py::arg("colors"), py::arg("viewmats"), py::arg("intrinsics"),
          py::arg("backgrounds"), py::arg("means2d_offsets"));

  py::class_<RasterizeState>(module, "RasterizeState").def(py::init<>());

  module.def(
      "rasterize_forward_cpu",
      [](const RasterizeParams &params, RasterizeState &state, std::uintptr_t rgb, std::uintptr_t alpha,
         std::uintptr_t depth, std::uintptr_t radii) {
        py::gil_scoped_release release;
        rasterize_forward_cpu(
            params,
            {pointer<float>(rgb), pointer<float>(alpha), pointer<float>(depth), pointer<int32_t>(radii)},
            state);
      },
      py::arg("params"), py::arg("state"), py::kw_only(), py::arg("rgb"), py::arg("alpha"), py::arg("depth"),
      py::arg("radii"));

  module.def(
      "rasterize_backward_cpu",
      [](const RasterizeParams &params, const RasterizeState &state, std::uintptr_t grad_rgb,
         std::uintptr_t grad_alpha, std::uintptr_t grad_depth, std::uintptr_t means, std::uintptr_t quats,
         std::uintptr_t scales, std::uintptr_t opacities, std::uintptr_t colors, std::uintptr_t backgrounds,
         std::uintptr_t viewmats, std::uintptr_t means2d) {
        py::gil_scoped_release release;
        rasterize_backward_cpu(params,
                               {pointer<const float>(grad_rgb), pointer<const float>(grad_alpha),
                                pointer<const float>(grad_depth)},
                               {pointer<float>(means), pointer<float>(quats), pointer<float>(scales),
                                pointer<float>(opacities), pointer<float>(colors),
                                pointer<float>(backgrounds), pointer<float>(viewmats),
                                pointer<float>(means2d)},
                               state);
      },
      py::arg("params"), py::arg("state"), py::kw_only(), py::arg("grad_rgb"), py::arg("grad_alpha"),
      py::arg("grad_depth"), py::arg("means"), py::arg("quats"), py::arg("scales"), py::arg("opacities"),
      py::arg("colors"), py::arg("backgrounds"), py::arg("viewmats"), py::arg("means2d"));
}

} // namespace

PYBIND11_MODULE(_C, module) {
  module.def("num_threads", &num_threads);
  module.def("set_num_threads", &set_num_threads);
  module.def("simd_level", [] { return std::string(name_of(simd_level())); });
  module.def("compiler", [] { return std::string(__VERSION__); });
#ifdef DDPO3D_WITH_CUDA
  module.attr("with_cuda") = true;
#else
  module.attr("with_cuda") = false;
#endif
  bind_rasterizer(module);
#ifdef DDPO3D_WITH_DIFFUSION
  bind_diffusion(module);
#endif
}
