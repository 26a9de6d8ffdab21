// Density of Gaussians on a grid, for any C++ program: plain pointers and sizes, no torch.
#pragma once

#include <cstdint>

namespace ddpo3d_fast {

struct DensityParams {
  int64_t num_gaussians;
  const float *means;           // [N, 3], world
  const float *quats;           // [N, 4] w, x, y, z, of any length but 0
  const float *scales;          // [N, 3], after activation
  const float *opacities;       // [N], after activation
  float dilation;               // variance added along every axis, world units²
  double origin[3];             // x, y, z of the grid's first point
  double cell;                  // from one point to the next, world units
  int64_t width, height, depth; // points along x, y and z
  float *density;               // [depth, height, width], written
};

void gaussian_density(const DensityParams &params);

// The same on a GPU, on `cuda_stream`, a cudaStream_t; all pointers are the device's. `workspace` holds
// density_workspace_bytes(N), aligned to 8 bytes. std::runtime_error if a launch fails.
int64_t density_workspace_bytes(int64_t num_gaussians);
void gaussian_density_cuda(const DensityParams &params, void *workspace, void *cuda_stream);

} // namespace ddpo3d_fast
