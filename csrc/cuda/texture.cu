// CUDA backend of texture sampling: a thread a pixel forward; backward a thread a texel, which finds the
// pixels that sampled it in a sorted list and adds them up in its order. No float is added atomically.
#include "ddpo3d_fast/triangles.h"

#include "launch.cuh"
#include "maths/texture.h"

namespace ddpo3d_fast {
namespace {

constexpr int kThreads = 128;

__device__ inline TexturePoint point_at(const TextureParams &p, int64_t pixel) {
  return texture_point(p.corners + 6 * int64_t(p.triangle[pixel]), p.barycentrics + 3 * pixel,
                       int32_t(p.width), int32_t(p.height));
}

__global__ void __launch_bounds__(kThreads) sample_kernel(TextureParams p, const float *texture, float *rgb) {
  await_previous_kernels();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.num_pixels)
    return;
  const bool seen = p.triangle[i] >= 0;
  const TexturePoint at = seen ? point_at(p, i) : TexturePoint{};
  for (int c = 0; c < 3; ++c) {
    float sum = 0.0f;
    for (int corner = 0; seen && corner < 4; ++corner) {
      const int later = corner & 1, lower = corner >> 1;
      sum =
          texel_weight(at, later, lower) * texture[3 * ((at.row + lower) * p.width + at.column + later) + c] +
          sum;
    }
    rgb[3 * i + c] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) keys_kernel(TextureParams p, int32_t *keys) {
  await_previous_kernels();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.num_pixels)
    return;
  int64_t key = p.width * p.height;
  if (p.triangle[i] >= 0) {
    const TexturePoint at = point_at(p, i);
    key = at.row * p.width + at.column;
  }
  keys[i] = int32_t(key);
}

__global__ void __launch_bounds__(kThreads)
    backward_kernel(TextureParams p, const int32_t *keys, const int64_t *pixels, const float *grad_rgb,
                    float *grad_texture) {
  await_previous_kernels();
  const int64_t texel = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (texel >= p.width * p.height)
    return;
  const int32_t column = int32_t(texel % p.width), row = int32_t(texel / p.width);
  double sums[3] = {};
  for (int corner = 3; corner >= 0; --corner) { // as the lower right texel of four first: the order of keys
    const int later = corner & 1, lower = corner >> 1;
    if (column < later || row < lower)
      continue;
    const int64_t key = (row - lower) * p.width + column - later;
    int64_t begin = 0, end = p.num_pixels;
    while (begin < end) {
      const int64_t middle = (begin + end) / 2;
      if (keys[middle] < key)
        begin = middle + 1;
      else
        end = middle;
    }
    for (; begin < p.num_pixels && keys[begin] == key; ++begin) {
      const int64_t pixel = pixels[begin];
      const float weight = texel_weight(point_at(p, pixel), later, lower);
      for (int c = 0; c < 3; ++c)
        sums[c] += double(weight) * grad_rgb[3 * pixel + c];
    }
  }
  for (int c = 0; c < 3; ++c)
    grad_texture[3 * texel + c] = float(sums[c]);
}

unsigned blocks(int64_t threads) { return unsigned((threads + kThreads - 1) / kThreads); }

} // namespace

void sample_texture_cuda(const TextureParams &p, const float *texture, float *rgb, void *cuda_stream) {
  launch_early("texture_sample", sample_kernel, dim3(blocks(p.num_pixels)), dim3(kThreads), 0,
               static_cast<cudaStream_t>(cuda_stream), p, texture, rgb);
}

void texture_keys_cuda(const TextureParams &p, int32_t *keys, void *cuda_stream) {
  launch_early("texture_keys", keys_kernel, dim3(blocks(p.num_pixels)), dim3(kThreads), 0,
               static_cast<cudaStream_t>(cuda_stream), p, keys);
}

// Waits for the kernel before, which may be torch's sort: an ordinary launch.
void sample_texture_backward_cuda(const TextureParams &p, const int32_t *keys, const int64_t *pixels,
                                  const float *grad_rgb, float *grad_texture, void *cuda_stream) {
  launch("texture_backward", backward_kernel, dim3(blocks(p.width * p.height)), dim3(kThreads), 0,
         static_cast<cudaStream_t>(cuda_stream), p, keys, pixels, grad_rgb, grad_texture);
}

} // namespace ddpo3d_fast
