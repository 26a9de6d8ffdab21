// Textured triangles to pictures and back to the texture, for any C++ program: plain pointers and sizes.
#pragma once

#include <cstdint>

namespace ddpo3d_fast {

struct TriangleParams {
  int64_t num_vertices, num_triangles, num_cameras;
  int64_t width, height;    // pixels
  const float *vertices;    // [V, 3], world
  const int32_t *triangles; // [F, 3], of vertices; each in [0, V)
  const float *viewmats;    // [C, 4, 4], world to camera
  const float *intrinsics;  // [C, 3, 3], pixels
  float near;               // depth; a triangle with a corner nearer than this is not drawn
};

struct TriangleOutputs {
  int32_t *triangle;   // [C, H, W], which one is seen, -1: none
  float *barycentrics; // [C, H, W, 3], of its corners; 0 where there is none
  float *depth;        // [C, H, W], along the camera's axis; 0 where there is none
};

void rasterize_triangles(const TriangleParams &params, const TriangleOutputs &outputs);

struct TextureParams {
  int64_t width, height;     // texels, 2 or more
  int64_t num_pixels;        // P
  const float *corners;      // [F, 3, 2] texture coordinates u, v of every triangle's corners
  const int32_t *triangle;   // [P], -1: none
  const float *barycentrics; // [P, 3]
};

// rgb [P, 3] of a texture [height, width, 3], bilinear; 0 where there is no triangle.
void sample_texture(const TextureParams &params, const float *texture, float *rgb);

// grad_texture [height, width, 3] from grad_rgb [P, 3]: a texel's sum in the order of pixels, in double
// precision.
void sample_texture_backward(const TextureParams &params, const float *grad_rgb, float *grad_texture);

// ---- the same on a GPU, on `cuda_stream`, a cudaStream_t; all pointers are the device's. std::runtime_error
// if a launch fails.

int64_t triangles_workspace_bytes(const TriangleParams &params); // aligned to 8 bytes
void rasterize_triangles_cuda(const TriangleParams &params, const TriangleOutputs &outputs, void *workspace,
                              void *cuda_stream);
void sample_texture_cuda(const TextureParams &params, const float *texture, float *rgb, void *cuda_stream);

// keys [P]: the upper left texel that a pixel samples, row by row; width * height for none.
void texture_keys_cuda(const TextureParams &params, int32_t *keys, void *cuda_stream);

// `keys` rising, `pixels` [P] the pixel of each, rising where keys are equal.
void sample_texture_backward_cuda(const TextureParams &params, const int32_t *keys, const int64_t *pixels,
                                  const float *grad_rgb, float *grad_texture, void *cuda_stream);

} // namespace ddpo3d_fast
