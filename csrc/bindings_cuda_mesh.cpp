// pybind11 bindings of the CUDA way from Gaussians to meshes: addresses, sizes and a stream in, nothing else.
#include "bindings_mesh.h"

#include <pybind11/stl.h>

namespace py = pybind11;
using namespace ddpo3d_fast;

void bind_cuda_mesh(py::module_ &module) {
  using release = py::call_guard<py::gil_scoped_release>;
  using Address = uintptr_t;

  module.def("density_workspace_bytes", &density_workspace_bytes, py::arg("num_gaussians"));

  module.def(
      "gaussian_density_cuda",
      [](int64_t num_gaussians, Address means, Address quats, Address scales, Address opacities,
         float dilation, const std::array<double, 3> &origin, double cell, const std::array<int64_t, 3> &size,
         Address density, Address workspace, Address cuda_stream) {
        gaussian_density_cuda(density_params(num_gaussians, means, quats, scales, opacities, dilation, origin,
                                             cell, size, density),
                              pointer<void>(workspace), pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("num_gaussians"), py::arg("means"), py::arg("quats"), py::arg("scales"),
      py::arg("opacities"), py::arg("dilation"), py::arg("origin"), py::arg("cell"), py::arg("size"),
      py::arg("density"), py::arg("workspace"), py::arg("cuda_stream"), release());

  bind_mesh_params(module);

  module.def("triangles_workspace_bytes", &triangles_workspace_bytes, py::arg("params"));

  module.def(
      "rasterize_triangles_cuda",
      [](const TriangleParams &params, Address triangle, Address barycentrics, Address depth,
         Address workspace, Address cuda_stream) {
        rasterize_triangles_cuda(params, triangle_outputs(triangle, barycentrics, depth),
                                 pointer<void>(workspace), pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("params"), py::arg("triangle"), py::arg("barycentrics"), py::arg("depth"),
      py::arg("workspace"), py::arg("cuda_stream"), release());

  module.def(
      "sample_texture_cuda",
      [](const TextureParams &params, Address texture, Address rgb, Address cuda_stream) {
        sample_texture_cuda(params, pointer<const float>(texture), pointer<float>(rgb),
                            pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("params"), py::arg("texture"), py::arg("rgb"), py::arg("cuda_stream"),
      release());

  module.def(
      "texture_keys_cuda",
      [](const TextureParams &params, Address keys, Address cuda_stream) {
        texture_keys_cuda(params, pointer<int32_t>(keys), pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("params"), py::arg("keys"), py::arg("cuda_stream"), release());

  module.def(
      "sample_texture_backward_cuda",
      [](const TextureParams &params, Address grad_rgb, Address grad_texture, Address keys, Address pixels,
         Address cuda_stream) {
        sample_texture_backward_cuda(params, pointer<const int32_t>(keys), pointer<const int64_t>(pixels),
                                     pointer<const float>(grad_rgb), pointer<float>(grad_texture),
                                     pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("params"), py::arg("grad_rgb"), py::arg("grad_texture"), py::arg("keys"),
      py::arg("pixels"), py::arg("cuda_stream"), release());
}
