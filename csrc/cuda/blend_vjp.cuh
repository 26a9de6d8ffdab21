// Where the backward pass's scratch memory lies.
#pragma once

#include "rasterizer_state.cuh"

namespace ddpo3d_fast {

constexpr int kEntryGradients = 10;  // and two of absolute values, where they are asked for
constexpr int kCameraGradients = 12; // rotation row by row, translation

constexpr int kGradientThreads = 128;
constexpr int kMostViews = 8;                               // of a block of gaussians_vjp_kernel
constexpr int kFewestLanes = kGradientThreads / kMostViews; // Gaussians of a block then

// How many views a block of gaussians_vjp_kernel has side by side, a power of two.
inline int gradient_views(const RasterizeParams &params) {
  int views = 1;
  while (views < params.num_cameras && views < kMostViews)
    views *= 2;
  return views;
}

inline int64_t gradient_blocks(const RasterizeParams &params) {
  return blocks_for(params.num_gaussians, kGradientThreads / gradient_views(params));
}

struct DeviceScratch {
  DeviceEntryGradient *partial; // [max_entries] by slot
  float *backgrounds;           // [C · tiles, 3], by background_vjp_kernel
  double *cameras;              // [blocks of Gaussians, C, kCameraGradients]
};

inline DeviceScratch carve_scratch(const RasterizeParams &params, int64_t tiles, int64_t max_entries,
                                   void *block, int64_t &bytes) {
  Carver carver(block);
  DeviceScratch s = {};
  s.partial = carver.take<DeviceEntryGradient>(max_entries);
  s.backgrounds = carver.take<float>(3 * params.num_cameras * tiles);
  s.cameras = carver.take<double>(gradient_blocks(params) * params.num_cameras * kCameraGradients);
  bytes = carver.bytes();
  return s;
}

// Stage 6 (gaussians_vjp.cu).
void launch_gaussians_vjp(const RasterizeParams &params, float opacity_penalty,
                          const RasterizeGradients &gradients, const DeviceState &state,
                          const DeviceScratch &scratch, cudaStream_t stream);

} // namespace ddpo3d_fast
