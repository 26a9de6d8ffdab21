// What the bindings of the CPU's and the GPU's way from Gaussians to meshes share.
#pragma once

#include <array>
#include <cstdint>

#include "bindings.h"
#include "ddpo3d_fast/density.h"

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

} // namespace ddpo3d_fast
