// The Gaussian rasterizer for C++ programs: plain pointers and sizes. All arrays are contiguous float32 in
// row order.
#pragma once

#include <cstdint>
#include <memory>

namespace ddpo3d_fast {

struct RasterizeParams {
  int64_t num_gaussians;        // N
  int64_t num_cameras;          // C
  int64_t width, height;        // W, H of every image, pixels
  int sh_degree;                // 0 to 3; -1: colors are plain
  bool antialiased;             // scale opacity by √(det Σ / det Σ_dilated)
  float near, far;              // Gaussians whose camera z is not between them are culled
  const float *means;           // [N, 3]
  const float *quats;           // [N, 4] w, x, y, z; any length but zero
  const float *scales;          // [N, 3] standard deviations
  const float *opacities;       // [N]
  const float *colors;          // [N, 3], or [N, (sh_degree + 1)², 3]
  int64_t color_stride;         // floats from one Gaussian's colors to the next: unused SH bands are skipped
  const float *viewmats;        // [C, 4, 4] world to camera
  const float *intrinsics;      // [C, 3, 3] pixels: fx, fy, cx, cy are read
  const float *backgrounds;     // [C, 3], or null for black
  const float *means2d_offsets; // [C, N, 2] pixels, added to the projected means, or null
};

struct RasterizeOutputs {
  float *rgb;     // [C, H, W, 3]
  float *alpha;   // [C, H, W]
  float *depth;   // [C, H, W] Σ weight z
  int32_t *radii; // [C, N] pixels, 0 where nothing is drawn
};

struct RasterizeUpstream {
  const float *rgb;   // [C, H, W, 3] d(loss)/d(rgb), or null for zero; so the others
  const float *alpha; // [C, H, W]
  const float *depth; // [C, H, W]
};

struct RasterizeGradients { // a null pointer: not wanted
  float *means;             // [N, 3]
  float *quats;             // [N, 4]
  float *scales;            // [N, 3]
  float *opacities;         // [N]
  float *colors;            // as params.colors, color_stride included
  float *backgrounds;       // [C, 3]
  float *viewmats;          // [C, 4, 4]
  float *means2d;           // [C, N, 2] pixels
};

// What the backward pass needs of a forward pass beyond its inputs.
class RasterizeState {
public:
  RasterizeState();
  ~RasterizeState();
  RasterizeState(const RasterizeState &) = delete;
  RasterizeState &operator=(const RasterizeState &) = delete;

  struct Impl;
  Impl &impl() const;

private:
  struct Owner;
  std::unique_ptr<Owner> owner;
};

// Renders. Gaussians with a non-finite number count as absent. The inputs must outlive, unchanged, a backward
// pass. std::length_error when the images and Gaussians make more than 2^32 tile entries, std::bad_alloc out
// of memory.
void rasterize_forward_cpu(const RasterizeParams &params, const RasterizeOutputs &outputs,
                           RasterizeState &state);

// The vector-Jacobian product of the forward pass that filled `state`, with the same params. Every element of
// the gradients asked for is written. Same inputs, same bits, whatever the number of threads.
void rasterize_backward_cpu(const RasterizeParams &params, const RasterizeUpstream &upstream,
                            const RasterizeGradients &gradients, const RasterizeState &state);

} // namespace ddpo3d_fast
