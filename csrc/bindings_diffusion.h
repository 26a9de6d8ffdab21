// What the bindings of the CPU's and the GPU's diffusion arithmetic share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings.h"
#include "ddpo3d_fast/diffusion.h"

namespace ddpo3d_fast {

inline Input input(uintptr_t address, int type) { return {pointer<const void>(address), DataType(type)}; }

// Makes the classes of parameters known to a module, once. They are local to it: the emulated CUDA functions
// of tests/simt are a second module in the same process.
inline void bind_parameters(pybind11::module_ &module) {
  namespace py = pybind11;
  if (py::hasattr(module, "Prediction"))
    return;
  py::class_<Prediction>(module, "Prediction", py::module_local())
      .def(py::init([](uintptr_t noisy, int noisy_type, uintptr_t conditional, int conditional_type,
                       uintptr_t unconditional, int unconditional_type, uintptr_t alphas_cumprod,
                       float guidance_scale, int type, bool clip, float clip_low, float clip_high) {
             return Prediction{input(noisy, noisy_type),
                               input(conditional, conditional_type),
                               input(unconditional, unconditional_type),
                               pointer<const float>(alphas_cumprod),
                               guidance_scale,
                               type,
                               clip,
                               clip_low,
                               clip_high,
                               nullptr};
           }),
           py::kw_only(), py::arg("noisy"), py::arg("noisy_type"), py::arg("conditional"),
           py::arg("conditional_type"), py::arg("unconditional"), py::arg("unconditional_type"),
           py::arg("alphas_cumprod"), py::arg("guidance_scale"), py::arg("type"), py::arg("clip"),
           py::arg("clip_low"), py::arg("clip_high"))
      .def_property(
          "clean_scale", [](const Prediction &p) { return reinterpret_cast<uintptr_t>(p.clean_scale); },
          [](Prediction &p, uintptr_t address) { p.clean_scale = pointer<const float>(address); });

  py::class_<MixedResidualParams>(module, "MixedResidual", py::module_local())
      .def(py::init([](uintptr_t noisy, int noisy_type, uintptr_t conditional, int conditional_type,
                       uintptr_t unconditional, int unconditional_type, uintptr_t negative, int negative_type,
                       uintptr_t alphas_cumprod, uintptr_t residual_weight, uintptr_t mixture, int type,
                       int64_t views, int64_t actions, int64_t dims, uintptr_t grad) {
             return MixedResidualParams{input(noisy, noisy_type),
                                        input(conditional, conditional_type),
                                        input(unconditional, unconditional_type),
                                        input(negative, negative_type),
                                        pointer<const float>(alphas_cumprod),
                                        pointer<const float>(residual_weight),
                                        pointer<const float>(mixture),
                                        type,
                                        views,
                                        actions,
                                        dims,
                                        pointer<float>(grad)};
           }),
           py::kw_only(), py::arg("noisy"), py::arg("noisy_type"), py::arg("conditional"),
           py::arg("conditional_type"), py::arg("unconditional"), py::arg("unconditional_type"),
           py::arg("negative"), py::arg("negative_type"), py::arg("alphas_cumprod"),
           py::arg("residual_weight"), py::arg("mixture"), py::arg("type"), py::arg("views"),
           py::arg("actions"), py::arg("dims"), py::arg("grad"));
}

} // namespace ddpo3d_fast
