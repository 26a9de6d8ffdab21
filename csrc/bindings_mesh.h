// What the bindings of the CPU's and the GPU's way from Gaussians to meshes share.
#pragma once

#include <array>
#include <cstdint>

#include "bindings.h"
#include "ddpo3d_fast/density.h"
#include "ddpo3d_fast/triangles.h"

namespace ddpo3d_fast {

inline DensityParams density_params(int64_t num_gaussians, uintptr_t means, uintptr_t quats, uintptr_t scales,
                                    uintptr_t opacities, float dilation, const std::array<double, 3> &origin,
                                    double cell, const std::array<int64_t, 3> &size, uintptr_t density) {
  return {num_gaussians,
          pointer<const float>(means),
          pointer<const float>(quats),
          pointer<const float>(scales),
          pointer<const float>(opacities),
          dilation,
          {origin[0], origin[1], origin[2]},
          cell,
          size[0],
          size[1],
          size[2],
          pointer<float>(density)};
}

// Makes the classes of parameters known to a module. They are local to it: the emulated CUDA functions of
// tests/simt are a second module in the same process.
inline void bind_mesh_params(pybind11::module_ &module) {
  namespace py = pybind11;
  if (py::hasattr(module, "TriangleParams"))
    return;
  py::class_<TriangleParams>(module, "TriangleParams", py::module_local())
      .def(py::init([](int64_t num_vertices, int64_t num_triangles, int64_t num_cameras, int64_t width,
                       int64_t height, uintptr_t vertices, uintptr_t triangles, uintptr_t viewmats,
                       uintptr_t intrinsics, float near) {
             return TriangleParams{num_vertices,
                                   num_triangles,
                                   num_cameras,
                                   width,
                                   height,
                                   pointer<const float>(vertices),
                                   pointer<const int32_t>(triangles),
                                   pointer<const float>(viewmats),
                                   pointer<const float>(intrinsics),
                                   near};
           }),
           py::kw_only(), py::arg("num_vertices"), py::arg("num_triangles"), py::arg("num_cameras"),
           py::arg("width"), py::arg("height"), py::arg("vertices"), py::arg("triangles"),
           py::arg("viewmats"), py::arg("intrinsics"), py::arg("near"));

  py::class_<TextureParams>(module, "TextureParams", py::module_local())
      .def(py::init([](int64_t width, int64_t height, int64_t num_pixels, uintptr_t corners,
                       uintptr_t triangle, uintptr_t barycentrics) {
             return TextureParams{width,
                                  height,
                                  num_pixels,
                                  pointer<const float>(corners),
                                  pointer<const int32_t>(triangle),
                                  pointer<const float>(barycentrics)};
           }),
           py::kw_only(), py::arg("width"), py::arg("height"), py::arg("num_pixels"), py::arg("corners"),
           py::arg("triangle"), py::arg("barycentrics"));
}

inline TriangleOutputs triangle_outputs(uintptr_t triangle, uintptr_t barycentrics, uintptr_t depth) {
  return {pointer<int32_t>(triangle), pointer<float>(barycentrics), pointer<float>(depth)};
}

} // namespace ddpo3d_fast
