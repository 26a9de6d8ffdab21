// What the bindings share. Classes are local to their module: several modules may be built on these sources.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "ddpo3d_fast/rasterizer.h"

namespace ddpo3d_fast {

template <class T> T *pointer(std::uintptr_t address) { return reinterpret_cast<T *>(address); }

inline void bind_rasterize_params(pybind11::module_ &module) {
  namespace py = pybind11;
  py::class_<RasterizeParams>(module, "RasterizeParams", py::module_local())
      .def(py::init([](int64_t num_gaussians, int64_t num_cameras, int64_t width, int64_t height,
                       int sh_degree, bool activated, bool antialiased, float near, float far,
                       int64_t color_stride, std::uintptr_t means, std::uintptr_t quats,
                       std::uintptr_t scales, std::uintptr_t opacities, std::uintptr_t colors,
                       std::uintptr_t viewmats, std::uintptr_t intrinsics, std::uintptr_t backgrounds,
                       std::uintptr_t means2d_offsets, double eps2d, double factor_min, float alpha_max,
                       float transmittance_min, bool through_clamp, double sigmas, double radius_clip,
                       bool unit_quats, std::uintptr_t positions, std::uintptr_t means2d,
                       std::uintptr_t covariances2d, std::uintptr_t depths) {
             RasterizeParams p;
             p.num_gaussians = num_gaussians;
             p.num_cameras = num_cameras;
             p.width = width;
             p.height = height;
             p.sh_degree = sh_degree;
             p.activated = activated;
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
             p.eps2d = eps2d;
             p.factor_min = factor_min;
             p.alpha_max = alpha_max;
             p.transmittance_min = transmittance_min;
             p.through_clamp = through_clamp;
             p.sigmas = sigmas;
             p.radius_clip = radius_clip;
             p.unit_quats = unit_quats;
             p.positions = pointer<const float>(positions);
             p.means2d = pointer<const float>(means2d);
             p.covariances2d = pointer<const float>(covariances2d);
             p.depths = pointer<const float>(depths);
             return p;
           }),
           py::kw_only(), py::arg("num_gaussians"), py::arg("num_cameras"), py::arg("width"),
           py::arg("height"), py::arg("sh_degree"), py::arg("activated"), py::arg("antialiased"),
           py::arg("near"), py::arg("far"), py::arg("color_stride"), py::arg("means"), py::arg("quats"),
           py::arg("scales"), py::arg("opacities"), py::arg("colors"), py::arg("viewmats"),
           py::arg("intrinsics"), py::arg("backgrounds"), py::arg("means2d_offsets"), py::arg("eps2d"),
           py::arg("factor_min"), py::arg("alpha_max"), py::arg("transmittance_min"),
           py::arg("through_clamp"), py::arg("sigmas"), py::arg("radius_clip"), py::arg("unit_quats"),
           py::arg("positions"), py::arg("means2d"), py::arg("covariances2d"), py::arg("depths"))
      .def(
          "with_colors", // the same but for plain colours [N, 3] on black
          [](RasterizeParams p, std::uintptr_t colors) {
            p.sh_degree = -1;
            p.color_stride = 3;
            p.colors = pointer<const float>(colors);
            p.backgrounds = nullptr;
            return p;
          },
          py::arg("colors"));
}

} // namespace ddpo3d_fast
