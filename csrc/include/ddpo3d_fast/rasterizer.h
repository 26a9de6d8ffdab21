// The Gaussian rasterizer for C++ programs: plain pointers and sizes, a stream for CUDA. All arrays are
// contiguous float32 in row order; those of the CUDA functions lie in device memory.
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
  bool activated;               // false: scales are logarithms and opacities logits, and so their gradients
  const float *scales;          // [N, 3] standard deviations
  const float *opacities;       // [N]
  const float *colors;          // [N, 3], or [N, (sh_degree + 1)², 3]
  int64_t color_stride;         // floats from one Gaussian's colors to the next: unused SH bands are skipped
  const float *viewmats;        // [C, 4, 4] world to camera
  const float *intrinsics;      // [C, 3, 3] pixels: fx, fy, cx, cy are read
  const float *backgrounds;     // [C, 3], or null for black
  const float *means2d_offsets; // [C, N, 2] pixels, added to the projected means, or null

  // What other rasterizers do otherwise; the values here are this one's.
  double eps2d = 0.3;              // px², added to both diagonals of the covariance on the image
  double factor_min = 0;           // the opacity's factor where antialiased is no less
  float alpha_max = 0.99f;         // a Gaussian hides at most this much
  float transmittance_min = 1e-4f; // blending stops before the Gaussian that would leave this or less
  bool through_clamp = false; // whether what alpha_max clamps has a gradient, that of the unclamped alpha
  double sigmas = 0;          // > 0: drawn only in tiles that meet the square of so many standard
                              // deviations of its longer axis, and radii are half that square's side
  double radius_clip = 0;     // px; Gaussians whose bounding box has no longer half-side are left out
  bool unit_quats = true;     // false: quaternions go into the rotation's formula as they are

  // In the place of what is projected, or null. Gradients then end here.
  const float *positions = nullptr; // [C, 3] where spherical harmonics are seen from, else -Rᵀ t
  const float *means2d = nullptr;   // [C, N, 2] pixels
  const float *covariances2d =
      nullptr;                   // [C, N, 3] xx, xy, yy, px², before eps2d; with them means2d and depths
                                 // are given, colors are plain, and means, quats, scales not read
  const float *depths = nullptr; // [C, N] with covariances2d
};

struct RasterizeOutputs {
  float *rgb;         // [C, H, W, 3]
  float *alpha;       // [C, H, W]
  float *depth;       // [C, H, W] Σ weight z
  int32_t *radii;     // [C, N] pixels, 0 where nothing is drawn
  int32_t *box_radii; // [C, N, 2] pixels, half the sides of the bounding box, 0 off the image; or null
};

struct RasterizeUpstream {
  const float *rgb;      // [C, H, W, 3] d(loss)/d(rgb), or null for zero; so the others
  const float *alpha;    // [C, H, W]
  const float *depth;    // [C, H, W]
  float opacity_penalty; // weight of Σ opacities in the loss
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
  float *means2d_abs;       // [C, N, 2] Σ over the pixels of the absolute value of what each gives to means2d
  float *covariances2d; // [C, N, 3] where they were given; xy's of the one number both off-diagonals share
  float *depths;        // [C, N] with covariances2d
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

// Renders, and returns how many pairs of a tile and a Gaussian that takes. Where they are more than
// max_entries, at most 2^32 - 1, they are counted alone, and the outputs hold no use. Gaussians with a
// non-finite number count as absent, but a logit may be infinite and a logarithm -inf. Of those with an
// opacity of 0 nothing else is read, and they have no gradient, the penalty's included. The inputs must
// outlive, unchanged, a backward pass. std::bad_alloc out of memory.
int64_t rasterize_forward_cpu(const RasterizeParams &params, const RasterizeOutputs &outputs,
                              int64_t max_entries, RasterizeState &state);

// What so many pairs take at most, beside what images and Gaussians do.
int64_t rasterize_entries_bytes_cpu(int64_t entries);

// Blends other numbers of the Gaussians, features [N, F], as the forward pass that filled `state` has blended
// their colours, into images `out` [C, F, H, W] over zeros; `params` are that pass's.
void rasterize_features_cpu(const RasterizeParams &params, const float *features, int64_t num_features,
                            float *out, const RasterizeState &state);

// The vector-Jacobian product of the forward pass that filled `state`, with the same params. Every element of
// the gradients asked for is written. Same inputs, same bits, whatever the number of threads.
void rasterize_backward_cpu(const RasterizeParams &params, const RasterizeUpstream &upstream,
                            const RasterizeGradients &gradients, const RasterizeState &state);

// ---- CUDA. Nothing is allocated, copied to the host or waited for: the caller brings the memory.

struct RasterizeMemory {
  void *state;         // [rasterize_state_bytes_cuda], kept for the backward pass
  void *entries;       // [rasterize_entries_bytes_cuda], kept for the backward pass
  int64_t max_entries; // Gaussian-tile pairs that `entries` has room for, below 2^32
};

int64_t rasterize_state_bytes_cuda(const RasterizeParams &params);
int64_t rasterize_entries_bytes_cuda(int64_t max_entries);
int64_t rasterize_scratch_bytes_cuda(const RasterizeParams &params, int64_t max_entries);

// The forward pass in two parts. The first projects and counts (`entries` and images are not touched) and
// writes how many pairs are needed to `needed`, host memory that the device can write, which must outlive the
// launch and every replay of a graph that holds it; a caller that waits for it can make room. The second
// blends. Where max_entries is too small it writes NaN images and the backward pass zero gradients. The first
// two words of `state` are unsigned 32-bit numbers: one that is not zero where the room was too small, so
// that an optimiser can skip its step and make it repeatable, and the length of the longest list.
void rasterize_project_cuda(const RasterizeParams &params, const RasterizeOutputs &outputs, uint64_t *needed,
                            const RasterizeMemory &memory, void *stream);
void rasterize_blend_cuda(const RasterizeParams &params, const RasterizeOutputs &outputs,
                          const RasterizeMemory &memory, void *stream);

// As rasterize_backward_cpu; `scratch` holds rasterize_scratch_bytes_cuda.
void rasterize_backward_cuda(const RasterizeParams &params, const RasterizeUpstream &upstream,
                             const RasterizeGradients &gradients, const RasterizeMemory &memory,
                             void *scratch, void *stream);

} // namespace ddpo3d_fast
