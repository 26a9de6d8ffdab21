// pybind11 bindings of the diffusion arithmetic and Adam: addresses and sizes in, nothing else.
// Shapes, types and devices have been checked in ddpo3d_fast/kernels; an address of 0 is an absent array.
#include "bindings_diffusion.h"

#include "ddpo3d_fast/adam.h"
#include "ddpo3d_fast/diffusion.h"
#include "maths/philox.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using ddpo3d_fast::input;

float *floats(Address address) { return ddpo3d_fast::pointer<float>(address); }

} // namespace

void bind_diffusion(py::module_ &module) {
  using release = py::call_guard<py::gil_scoped_release>;

  module.def(
      "philox_words",
      [](uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
        const ddpo3d_fast::PhiloxWords w = ddpo3d_fast::philox4x32_10({c0, c1, c2, c3}, k0, k1);
        return py::make_tuple(w.x0, w.x1, w.x2, w.x3);
      },
      "Philox4x32-10 of one counter and key, for known-answer tests.");

  module.def(
      "philox_normal",
      [](Address out, int64_t count, uint64_t seed, uint64_t stream) {
        ddpo3d_fast::philox_normal({floats(out), count, seed, stream});
      },
      py::kw_only(), py::arg("out"), py::arg("count"), py::arg("seed"), py::arg("stream"), release());

  module.def(
      "add_noise",
      [](Address latents, int latents_type, Address alphas_cumprod, Address noisy, int64_t views,
         int64_t actions, int64_t dims, uint64_t seed, uint64_t stream) {
        ddpo3d_fast::add_noise({input(latents, latents_type), floats(alphas_cumprod), floats(noisy), views,
                                actions, dims, seed, stream});
      },
      py::kw_only(), py::arg("latents"), py::arg("latents_type"), py::arg("alphas_cumprod"), py::arg("noisy"),
      py::arg("views"), py::arg("actions"), py::arg("dims"), py::arg("seed"), py::arg("stream"), release());

  ddpo3d_fast::bind_parameters(module);

  module.def(
      "denoise_action",
      [](const ddpo3d_fast::Prediction &prediction, Address prev_alphas_cumprod, float eta, int64_t items,
         int64_t dims, uint64_t seed, uint64_t stream, Address guided_noise, Address clean, Address mean,
         Address action, Address log_prob) {
        ddpo3d_fast::denoise_action({prediction, floats(prev_alphas_cumprod), eta, items, dims, seed, stream,
                                     floats(guided_noise), floats(clean), floats(mean), floats(action),
                                     floats(log_prob)});
      },
      py::kw_only(), py::arg("prediction"), py::arg("prev_alphas_cumprod"), py::arg("eta"), py::arg("items"),
      py::arg("dims"), py::arg("seed"), py::arg("stream"), py::arg("guided_noise"), py::arg("clean"),
      py::arg("mean"), py::arg("action"), py::arg("log_prob"), release());

  module.def(
      "score_residual",
      [](const ddpo3d_fast::Prediction &prediction, Address residual_weight, Address action_weight,
         int64_t views, int64_t actions, int64_t dims, uint64_t seed, uint64_t noise_stream,
         uint64_t action_stream, Address grad) {
        ddpo3d_fast::score_residual({prediction, floats(residual_weight), floats(action_weight), views,
                                     actions, dims, seed, noise_stream, action_stream, floats(grad)});
      },
      py::kw_only(), py::arg("prediction"), py::arg("residual_weight"), py::arg("action_weight"),
      py::arg("views"), py::arg("actions"), py::arg("dims"), py::arg("seed"), py::arg("noise_stream"),
      py::arg("action_stream"), py::arg("grad"), release());

  module.def(
      "mixed_residual",
      [](const ddpo3d_fast::MixedResidualParams &params) { ddpo3d_fast::mixed_residual(params); },
      py::kw_only(), py::arg("params"), release());

  module.def(
      "adam",
      [](Address param, Address grad, Address exp_avg, Address exp_avg_sq, int64_t rows, int64_t columns,
         int64_t step, float learning_rate, Address row_learning_rates, double beta1, double beta2,
         double epsilon) {
        ddpo3d_fast::adam({floats(param), floats(grad), floats(exp_avg), floats(exp_avg_sq), rows, columns,
                           step, learning_rate, floats(row_learning_rates), beta1, beta2, epsilon});
      },
      py::kw_only(), py::arg("param"), py::arg("grad"), py::arg("exp_avg"), py::arg("exp_avg_sq"),
      py::arg("rows"), py::arg("columns"), py::arg("step"), py::arg("learning_rate"),
      py::arg("row_learning_rates"), py::arg("beta1"), py::arg("beta2"), py::arg("epsilon"), release());
}
