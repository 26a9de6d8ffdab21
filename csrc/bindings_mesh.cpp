// pybind11 bindings of the way from Gaussians to meshes: addresses and sizes in, nothing else.
// Shapes, types and devices have been checked in ddpo3d_fast/kernels.
#include "bindings_mesh.h"

#include <pybind11/stl.h>

namespace py = pybind11;
using namespace ddpo3d_fast;

void bind_mesh(py::module_ &module) {
  using release = py::call_guard<py::gil_scoped_release>;
  using Address = uintptr_t;

  module.def(
      "gaussian_density",
      [](int64_t num_gaussians, Address means, Address quats, Address scales, Address opacities,
         float dilation, const std::array<double, 3> &origin, double cell, const std::array<int64_t, 3> &size,
         Address density) {
        gaussian_density(density_params(num_gaussians, means, quats, scales, opacities, dilation, origin,
                                        cell, size, density));
      },
      py::kw_only(), py::arg("num_gaussians"), py::arg("means"), py::arg("quats"), py::arg("scales"),
      py::arg("opacities"), py::arg("dilation"), py::arg("origin"), py::arg("cell"), py::arg("size"),
      py::arg("density"), release());

  bind_mesh_params(module);

  module.def(
      "rasterize_triangles",
      [](const TriangleParams &params, Address triangle, Address barycentrics, Address depth) {
        rasterize_triangles(params, triangle_outputs(triangle, barycentrics, depth));
      },
      py::kw_only(), py::arg("params"), py::arg("triangle"), py::arg("barycentrics"), py::arg("depth"),
      release());

  module.def(
      "sample_texture",
      [](const TextureParams &params, Address texture, Address rgb) {
        sample_texture(params, pointer<const float>(texture), pointer<float>(rgb));
      },
      py::kw_only(), py::arg("params"), py::arg("texture"), py::arg("rgb"), release());

  module.def(
      "sample_texture_backward",
      [](const TextureParams &params, Address grad_rgb, Address grad_texture) {
        sample_texture_backward(params, pointer<const float>(grad_rgb), pointer<float>(grad_texture));
      },
      py::kw_only(), py::arg("params"), py::arg("grad_rgb"), py::arg("grad_texture"), release());
}
