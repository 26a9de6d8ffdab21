// pybind11 bindings of the GPU's diffusion arithmetic and Adam: addresses in device memory and sizes in.
// Shapes, types and devices have been checked in ddpo3d_fast/kernels; an address of 0 is an absent array.
// The last argument of each is the cudaStream_t to work on.
#include "bindings_diffusion.h"

#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "ddpo3d_fast/adam.h"

namespace py = pybind11;
using namespace ddpo3d_fast;

namespace {

using Address = uintptr_t;

float *floats(Address address) { return pointer<float>(address); }
const uint64_t *number(Address address) { return pointer<const uint64_t>(address); }

// param, grad, exp_avg, exp_avg_sq, rows, columns, learning_rate, row_learning_rates
using AdamGroup = std::tuple<Address, Address, Address, Address, int64_t, int64_t, float, Address>;

} // namespace

void bind_cuda_diffusion(py::module_ &module) {
  using release = py::call_guard<py::gil_scoped_release>;

  bind_parameters(module);

  module.def(
      "philox_normal_cuda",
      [](Address out, int64_t count, uint64_t seed, uint64_t stream, Address stream_offset,
         Address cuda_stream) {
        philox_normal_cuda({floats(out), count, seed, stream}, number(stream_offset),
                           pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("out"), py::arg("count"), py::arg("seed"), py::arg("stream"),
      py::arg("stream_offset"), py::arg("cuda_stream"), release());

  module.def(
      "add_noise_cuda",
      [](Address latents, int latents_type, Address alphas_cumprod, Address noisy, int64_t views,
         int64_t actions, int64_t dims, uint64_t seed, uint64_t stream, Address stream_offset,
         Address cuda_stream) {
        add_noise_cuda({input(latents, latents_type), floats(alphas_cumprod), floats(noisy), views, actions,
                        dims, seed, stream},
                       number(stream_offset), pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("latents"), py::arg("latents_type"), py::arg("alphas_cumprod"), py::arg("noisy"),
      py::arg("views"), py::arg("actions"), py::arg("dims"), py::arg("seed"), py::arg("stream"),
      py::arg("stream_offset"), py::arg("cuda_stream"), release());

  module.def("denoise_action_squares", &denoise_action_squares, py::arg("items"), py::arg("dims"),
             "How many doubles the argument `squares` of denoise_action_cuda must hold.");

  module.def(
      "denoise_action_cuda",
      [](const Prediction &prediction, Address prev_alphas_cumprod, float eta, int64_t items, int64_t dims,
         uint64_t seed, uint64_t stream, Address guided_noise, Address clean, Address mean, Address action,
         Address log_prob, Address squares, Address stream_offset, Address cuda_stream) {
        denoise_action_cuda({prediction, floats(prev_alphas_cumprod), eta, items, dims, seed, stream,
                             floats(guided_noise), floats(clean), floats(mean), floats(action),
                             floats(log_prob)},
                            pointer<double>(squares), number(stream_offset), pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("prediction"), py::arg("prev_alphas_cumprod"), py::arg("eta"), py::arg("items"),
      py::arg("dims"), py::arg("seed"), py::arg("stream"), py::arg("guided_noise"), py::arg("clean"),
      py::arg("mean"), py::arg("action"), py::arg("log_prob"), py::arg("squares"), py::arg("stream_offset"),
      py::arg("cuda_stream"), release());

  module.def(
      "score_residual_cuda",
      [](const Prediction &prediction, Address residual_weight, Address action_weight, int64_t views,
         int64_t actions, int64_t dims, uint64_t seed, uint64_t noise_stream, uint64_t action_stream,
         Address grad, Address stream_offset, Address cuda_stream) {
        score_residual_cuda({prediction, floats(residual_weight), floats(action_weight), views, actions, dims,
                             seed, noise_stream, action_stream, floats(grad)},
                            number(stream_offset), pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("prediction"), py::arg("residual_weight"), py::arg("action_weight"),
      py::arg("views"), py::arg("actions"), py::arg("dims"), py::arg("seed"), py::arg("noise_stream"),
      py::arg("action_stream"), py::arg("grad"), py::arg("stream_offset"), py::arg("cuda_stream"), release());

  module.def(
      "mixed_residual_cuda",
      [](const MixedResidualParams &params, Address cuda_stream) {
        mixed_residual_cuda(params, pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("params"), py::arg("cuda_stream"), release());

  module.attr("max_adam_groups") = max_adam_groups;

  module.def(
      "adam_cuda",
      [](const std::vector<AdamGroup> &groups, int64_t step, double beta1, double beta2, double epsilon,
         Address device_step, Address rate_scales, int64_t rate_scale_stride, Address skip,
         Address cuda_stream) {
        std::vector<AdamParams> params;
        for (const auto &[param, grad, exp_avg, exp_avg_sq, rows, columns, rate, row_rates] : groups)
          params.push_back({floats(param), floats(grad), floats(exp_avg), floats(exp_avg_sq), rows, columns,
                            step, rate, floats(row_rates), beta1, beta2, epsilon});
        adam_cuda(params.data(), int(params.size()),
                  {pointer<const int64_t>(device_step), floats(rate_scales), rate_scale_stride,
                   pointer<const uint32_t>(skip)},
                  pointer<void>(cuda_stream));
      },
      py::kw_only(), py::arg("groups"), py::arg("step"), py::arg("beta1"), py::arg("beta2"),
      py::arg("epsilon"), py::arg("device_step"), py::arg("rate_scales"), py::arg("rate_scale_stride"),
      py::arg("skip"), py::arg("cuda_stream"), release());
}
