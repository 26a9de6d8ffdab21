// Where the backward pass's scratch memory lies.
#pragma once

#include "rasterizer_state.cuh"

namespace ddpo3d_fast {

constexpr int kEntryGradients = 10;
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

// d(loss)/d(what a pixel shows).
struct PixelSlope {
  float red, green, blue, alpha, depth;
};

__device__ inline PixelSlope load_slope(const RasterizeUpstream &upstream, int64_t pixel) {
  PixelSlope s = {};
  if (upstream.rgb) {
    s.red = upstream.rgb[3 * pixel];
    s.green = upstream.rgb[3 * pixel + 1];
    s.blue = upstream.rgb[3 * pixel + 2];
  }
  s.alpha = upstream.alpha ? upstream.alpha[pixel] : 0.0f;
  s.depth = upstream.depth ? upstream.depth[pixel] : 0.0f;
  return s;
}

// The loss's slope along a Gaussian's colour, opacity 1 and depth.
__device__ inline float along(const PixelSlope &s, float red, float green, float blue, float depth) {
  return fma(s.red, red, fma(s.green, green, fma(s.blue, blue, fma(s.depth, depth, s.alpha))));
}

__device__ inline float along_background(const PixelSlope &s, const RasterizeParams &params, int64_t camera) {
  if (!params.backgrounds)
    return 0.0f;
  const float *background = params.backgrounds + 3 * camera;
  return s.red * background[0] + s.green * background[1] + s.blue * background[2];
}

// Adds what one pixel gives to a tile entry's gradient.
__device__ inline void add_entry_gradient(const Falloff<float> &f, float unclamped, float weight,
                                          float v_log_alpha, const PixelSlope &s,
                                          float (&values)[kEntryGradients]) {
  const float w = unclamped <= float(kAlphaMax) ? v_log_alpha : 0.0f; // no gradient through the clamp
  const float w1 = w * f.u1, w2 = w * f.u2;
  values[0] += w;
  values[1] += w1;
  values[2] += w2;
  values[3] = fma(w1, f.u1, values[3]);
  values[4] = fma(w1, f.u2, values[4]);
  values[5] = fma(w2, f.u2, values[5]);
  values[6] = fma(weight, s.red, values[6]);
  values[7] = fma(weight, s.green, values[7]);
  values[8] = fma(weight, s.blue, values[8]);
  values[9] = fma(weight, s.depth, values[9]);
}

// The stages (blend_vjp.cu or bucket_vjp.cu, gaussians_vjp.cu).
void launch_bucket_vjp(const RasterizeParams &params, const RasterizeUpstream &upstream,
                       const DeviceState &state, const DeviceScratch &scratch, int tile, cudaStream_t stream);
void launch_blend_vjp(const RasterizeParams &params, const RasterizeUpstream &upstream,
                      const DeviceState &state, const DeviceScratch &scratch, int tile, cudaStream_t stream);
void launch_gaussians_vjp(const RasterizeParams &params, const Penalties &penalties,
                          const RasterizeGradients &gradients, const DeviceState &state,
                          const DeviceScratch &scratch, cudaStream_t stream);

} // namespace ddpo3d_fast
