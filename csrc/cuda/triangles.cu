// CUDA backend of the triangles: vertices to the image, a warp a triangle into a buffer of depth keys, and a
// thread a pixel that asks the nearest triangle where it was hit. The least key wins, whoever comes first, so
// two runs agree to the bit.
#include "ddpo3d_fast/triangles.h"

#include "launch.cuh"
#include "maths/triangle.h"

namespace ddpo3d_fast {
namespace {

constexpr int kThreads = 128, kLanes = 32;

struct Workspace {
  unsigned long long *keys; // [C, H, W]
  ImagePoint *points;       // [C, V]
};

Workspace workspace_of(const TriangleParams &p, void *memory) {
  unsigned long long *const keys = static_cast<unsigned long long *>(memory);
  return {keys, reinterpret_cast<ImagePoint *>(keys + p.num_cameras * p.height * p.width)};
}

// Vertices to the image, and no triangle at any pixel.
__global__ void __launch_bounds__(kThreads) project_kernel(TriangleParams p, Workspace w) {
  await_previous_kernels();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < p.num_cameras * p.num_vertices) {
    const int64_t camera = i / p.num_vertices;
    w.points[i] = image_point(p.viewmats + 16 * camera, p.intrinsics + 9 * camera,
                              p.vertices + 3 * (i % p.num_vertices), p.near);
  }
  if (i < p.num_cameras * p.height * p.width)
    w.keys[i] = kNoTriangle;
}

__global__ void __launch_bounds__(kThreads) fill_kernel(TriangleParams p, Workspace w) {
  await_previous_kernels();
  const int64_t warp = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  if (warp >= p.num_cameras * p.num_triangles)
    return;
  const int64_t camera = warp / p.num_triangles, triangle = warp % p.num_triangles;
  const int32_t *corner = p.triangles + 3 * triangle;
  const ImagePoint *of = w.points + camera * p.num_vertices;
  const ImagePoint a = of[corner[0]], b = of[corner[1]], c = of[corner[2]];
  const PixelBox box = pixel_box(a, b, c, int32_t(p.width), int32_t(p.height));
  if (box.x0 >= box.x1 || box.y0 >= box.y1)
    return;
  const int32_t columns = box.x1 - box.x0;
  const int64_t pixels = int64_t(columns) * (box.y1 - box.y0);
  for (int64_t i = threadIdx.x % kLanes; i < pixels; i += kLanes) {
    const int32_t x = box.x0 + int32_t(i % columns), y = box.y0 + int32_t(i / columns);
    const TriangleHit hit = triangle_hit(a, b, c, x, y);
    if (hit.inside)
      atomicMin(w.keys + (camera * p.height + y) * p.width + x, depth_key(hit.inverse_z, int32_t(triangle)));
  }
}

__global__ void __launch_bounds__(kThreads)
    resolve_kernel(TriangleParams p, Workspace w, TriangleOutputs out) {
  await_previous_kernels();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.num_cameras * p.height * p.width)
    return;
  const uint64_t key = w.keys[i];
  TriangleHit hit = {};
  int32_t triangle = -1;
  if (key != kNoTriangle) {
    triangle = triangle_of(key);
    const int32_t *corner = p.triangles + 3 * int64_t(triangle);
    const ImagePoint *of = w.points + i / (p.height * p.width) * p.num_vertices;
    hit = triangle_hit(of[corner[0]], of[corner[1]], of[corner[2]], int32_t(i % p.width),
                       int32_t(i / p.width % p.height));
  }
  out.triangle[i] = triangle;
  for (int c = 0; c < 3; ++c)
    out.barycentrics[3 * i + c] = hit.barycentrics[c];
  out.depth[i] = hit.inside ? 1.0f / hit.inverse_z : 0.0f;
}

unsigned blocks(int64_t threads) { return unsigned((threads + kThreads - 1) / kThreads); }

} // namespace

int64_t triangles_workspace_bytes(const TriangleParams &p) {
  return p.num_cameras * (p.height * p.width * int64_t(sizeof(unsigned long long)) +
                          p.num_vertices * int64_t(sizeof(ImagePoint)));
}

void rasterize_triangles_cuda(const TriangleParams &p, const TriangleOutputs &outputs, void *memory,
                              void *cuda_stream) {
  const Workspace w = workspace_of(p, memory);
  cudaStream_t stream = static_cast<cudaStream_t>(cuda_stream);
  const int64_t pixels = p.num_cameras * p.height * p.width, vertices = p.num_cameras * p.num_vertices;
  launch_early("triangles_project", project_kernel, dim3(blocks(pixels > vertices ? pixels : vertices)),
               dim3(kThreads), 0, stream, p, w);
  launch_early("triangles_fill", fill_kernel, dim3(blocks(kLanes * p.num_cameras * p.num_triangles)),
               dim3(kThreads), 0, stream, p, w);
  launch_early("triangles_resolve", resolve_kernel, dim3(blocks(pixels)), dim3(kThreads), 0, stream, p, w,
               outputs);
}

} // namespace ddpo3d_fast
