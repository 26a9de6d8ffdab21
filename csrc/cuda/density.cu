// CUDA backend of the density on a grid: a block a brick of 8 x 8 x 8 points, which goes through all
// Gaussians, 512 at a time, and gathers those that reach it, in their order.
#include "ddpo3d_fast/density.h"

#include "launch.cuh"
#include "maths/density.h"

namespace ddpo3d_fast {
namespace {

constexpr int kSide = 8, kThreads = kSide * kSide * kSide, kWarps = kThreads / 32;

__global__ void prepare_kernel(DensityParams p, DensityGaussian *gaussians) {
  await_previous_kernels();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < p.num_gaussians)
    gaussians[i] =
        density_gaussian(p.means + 3 * i, p.quats + 4 * i, p.scales + 3 * i, p.opacities[i], p.dilation);
}

__device__ inline bool touches(double mean, float reach, double first, double cell) {
  return mean + reach >= first - cell && mean - reach <= first + kSide * cell;
}

__global__ void __launch_bounds__(kThreads)
    density_kernel(DensityParams p, const DensityGaussian *gaussians) {
  await_previous_kernels();
  DDPO3D_SHARED(int32_t[kThreads], chosen);
  DDPO3D_SHARED(int32_t[kWarps], of_warp);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int64_t x0 = int64_t(blockIdx.x) * kSide, y0 = int64_t(blockIdx.y) * kSide,
                z0 = int64_t(blockIdx.z) * kSide;
  const double x = p.origin[0] + p.cell * x0, y = p.origin[1] + p.cell * y0, z = p.origin[2] + p.cell * z0;
  const int ix = thread % kSide, iy = thread / kSide % kSide, iz = thread / (kSide * kSide);
  float density = 0.0f;
  for (int64_t first = 0; first < p.num_gaussians; first += kThreads) {
    const int64_t mine = first + thread;
    bool reaches = false;
    if (mine < p.num_gaussians) {
      const DensityGaussian &g = gaussians[mine];
      reaches = g.reach_x >= 0 && touches(g.x, g.reach_x, x, p.cell) && touches(g.y, g.reach_y, y, p.cell) &&
                touches(g.z, g.reach_z, z, p.cell);
    }
    const unsigned votes = __ballot_sync(0xFFFFFFFFu, reaches);
    if (lane == 0)
      of_warp[warp] = __popc(votes);
    __syncthreads();
    int place = __popc(votes & ((1u << lane) - 1u)), count = 0;
    for (int w = 0; w < kWarps; ++w) {
      place += w < warp ? of_warp[w] : 0;
      count += of_warp[w];
    }
    if (reaches)
      chosen[place] = int32_t(mine);
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const DensityGaussian &g = gaussians[chosen[k]];
      const DensityRow row =
          density_row(g, float(x - g.x), float(y - g.y + p.cell * iy), float(z - g.z + p.cell * iz));
      const float exponent = log2_density<float>(row, float(p.cell) * ix);
      density += exponent >= float(kLog2AlphaCut) ? exp2_fast(exponent) : 0.0f;
    }
    __syncthreads(); // before the next ones are gathered
  }
  if (x0 + ix < p.width && y0 + iy < p.height && z0 + iz < p.depth)
    p.density[((z0 + iz) * p.height + y0 + iy) * p.width + x0 + ix] = density;
}

} // namespace

int64_t density_workspace_bytes(int64_t num_gaussians) {
  return num_gaussians * int64_t(sizeof(DensityGaussian));
}

void gaussian_density_cuda(const DensityParams &p, void *workspace, void *cuda_stream) {
  DensityGaussian *const gaussians = static_cast<DensityGaussian *>(workspace);
  cudaStream_t stream = static_cast<cudaStream_t>(cuda_stream);
  const auto blocks = [](int64_t count, int side) { return unsigned((count + side - 1) / side); };
  launch_early("density_prepare", prepare_kernel, dim3(blocks(p.num_gaussians, 128)), dim3(128), 0, stream, p,
               gaussians);
  launch_early("density", density_kernel,
               dim3(blocks(p.width, kSide), blocks(p.height, kSide), blocks(p.depth, kSide)), dim3(kThreads),
               0, stream, p, static_cast<const DensityGaussian *>(gaussians));
}

} // namespace ddpo3d_fast
