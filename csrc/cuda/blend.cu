// Stage 4 of the CUDA rasterizer: every tile sorts its list and blends it, front to back. A block is a tile,
// a warp 8 x 8 of its pixels, which skips the Gaussians whose ellipse does not touch them.
#include "launch.cuh"
#include "rasterizer_state.cuh"
#include "sort_list.cuh"

namespace ddpo3d_fast {
namespace {

// A multiprocessor's, at least; told no number, or a larger one, ptxas saves registers by spills.
constexpr int kResidentThreads = 1024;

// Entries that a block sorts before it must merge in global memory, 8 bytes of shared memory each.
constexpr int kSortedAtOnce = 1024;

// A pixel on its way from front to back.
struct Ray {
  float transmittance, red, green, blue, depth;
  int32_t stop; // entries of the list before it stopped
};

// An entry before it is blended: nothing here waits for the entries in front of it.
struct Candidate {
  float alpha;
  bool counts;
};

__device__ inline Candidate candidate(const Splat &s, float most, float x, float y, bool touches) {
  const Falloff<float> f = falloff<float>(s, x, y);
  const float unclamped = exp2_fast(f.log2_alpha);
  return {unclamped < most ? unclamped : most, touches && f.log2_alpha >= float(kLog2AlphaCut)};
}

__device__ inline void blend(const Splat &s, float least, const Candidate &candidate, int32_t entry,
                             Ray &ray) {
  const Composite<float> c = composite(candidate.alpha, ray.transmittance);
  const bool counts = candidate.counts && ray.stop == kNeverStopped;
  const bool ends = counts && c.transmittance <= least;
  if (counts && !ends) {
    ray.transmittance = c.transmittance;
    ray.red = fma(c.weight, s.red, ray.red);
    ray.green = fma(c.weight, s.green, ray.green);
    ray.blue = fma(c.weight, s.blue, ray.blue);
    ray.depth = fma(c.weight, s.depth, ray.depth);
  }
  ray.stop = ends ? entry : ray.stop;
}

__global__ void __launch_bounds__(kTileThreads, kResidentThreads / kTileThreads)
    blend_kernel(RasterizeParams params, DeviceState state, RasterizeOutputs outputs) {
  await_previous_kernels();
  constexpr int threads = kTileThreads, batch = threads;
  const uint32_t list = blockIdx.x, camera = list / uint32_t(state.tiles),
                 within = list % uint32_t(state.tiles);
  const uint32_t tiles_x = uint32_t(state.tiles_x);
  const int x0 = int(within % tiles_x) * kTile, y0 = int(within / tiles_x) * kTile;
  const int t = threadIdx.x, lane = t % kWarp;
  if (state.counters->overflow) {
    for (int p = 0; p < kPixels; ++p) {
      const TilePixel pixel = tile_pixel(params, camera, x0, y0, p);
      if (!pixel.inside)
        continue;
      const float nan = __int_as_float(0x7fc00000);
      for (int c = 0; c < 3; ++c)
        outputs.rgb[3 * pixel.index + c] = nan;
      outputs.alpha[pixel.index] = outputs.depth[pixel.index] = nan;
    }
    return;
  }
  const int32_t count = int32_t(state.tile_count[list]);
  const int64_t begin = state.tile_begin[list];
  // One after the other in the same memory.
  union Memory {
    SortMemory<threads, kSortedAtOnce> sort;
    TileSplat splats[batch];
  };
  DDPO3D_SHARED(Memory, memory);
  sort_list(state.entries + begin, state.sorted + begin, count, memory.sort);
  TileSplat *const splats = memory.splats;

  Ray rays[kPixels];
  float from_x, from_y[kPixels];
  uint32_t block[kPixels], blocks = 0;
  for (int p = 0; p < kPixels; ++p) {
    const TilePixel pixel = tile_pixel(params, camera, x0, y0, p);
    // Pixels beyond the edge have stopped before they began.
    rays[p] = {1.0f, 0.0f, 0.0f, 0.0f, 0.0f, pixel.inside ? kNeverStopped : 0};
    from_x = pixel.from_x;
    from_y[p] = pixel.from_y;
    block[p] = pixel.block;
    blocks |= pixel.block;
  }
  const auto live = [&] {
    bool any = false;
    for (int p = 0; p < kPixels; ++p)
      any = any || rays[p].stop == kNeverStopped;
    return any;
  };
  DeviceEntry next = {};
  if (t < count)
    next = state.sorted[begin + t];
#pragma unroll 1
  for (int32_t first = 0; first < count; first += batch) {
    if (!__syncthreads_or(live()))
      break;
    const int32_t m = count - first < batch ? count - first : batch;
    if (t < m)
      splats[t] = tile_splat(state.projected[camera * params.num_gaussians + next.gaussian], next, x0, y0);
    __syncthreads();
    if (first + batch + t < count) // fetched while this batch is blended
      next = state.sorted[begin + first + batch + t];
#pragma unroll 1
    for (int32_t group = 0; group < m && __any_sync(kAllLanes, live()); group += kWarp) {
      const bool touches = group + lane < m && (splats[group + lane].mask & blocks);
#pragma unroll 1
      for (uint32_t hits = __ballot_sync(kAllLanes, touches); hits;) { // two at a time
        const int32_t k = group + __ffs(int(hits)) - 1;
        hits &= hits - 1;
        const bool second = hits;
        const int32_t l = second ? group + __ffs(int(hits)) - 1 : k;
        hits &= hits - 1; // of 0: 0
        const TileSplat a = splats[k], b = splats[l];
        Candidate of_a[kPixels], of_b[kPixels];
        for (int p = 0; p < kPixels; ++p) {
          of_a[p] = candidate(splat_of(a), params.alpha_max, from_x, from_y[p], a.mask & block[p]);
          of_b[p] =
              candidate(splat_of(b), params.alpha_max, from_x, from_y[p], second && (b.mask & block[p]));
        }
        for (int p = 0; p < kPixels; ++p)
          blend(splat_of(a), params.transmittance_min, of_a[p], first + k, rays[p]);
        for (int p = 0; p < kPixels; ++p)
          blend(splat_of(b), params.transmittance_min, of_b[p], first + l, rays[p]);
      }
    }
  }

  for (int p = 0; p < kPixels; ++p) {
    const TilePixel pixel = tile_pixel(params, camera, x0, y0, p);
    if (!pixel.inside)
      continue;
    const Ray &ray = rays[p];
    const float *background = params.backgrounds ? params.backgrounds + 3 * camera : nullptr;
    const float transmittance = ray.transmittance;
    outputs.rgb[3 * pixel.index] = ray.red + transmittance * (background ? background[0] : 0.0f);
    outputs.rgb[3 * pixel.index + 1] = ray.green + transmittance * (background ? background[1] : 0.0f);
    outputs.rgb[3 * pixel.index + 2] = ray.blue + transmittance * (background ? background[2] : 0.0f);
    outputs.alpha[pixel.index] = 1.0f - transmittance;
    outputs.depth[pixel.index] = ray.depth;
    state.transmittance[pixel.index] = transmittance;
    state.stop[pixel.index] = ray.stop;
  }
}

} // namespace

void rasterize_blend_cuda(const RasterizeParams &params, const RasterizeOutputs &outputs,
                          const RasterizeMemory &memory, void *stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const DeviceState state = device_state(params, memory);
  launch_scatter(params, state, on);
  launch_early("rasterize blend", blend_kernel, dim3(uint32_t(params.num_cameras * state.tiles)),
               dim3(kTileThreads), 0, on, params, state, outputs);
}

} // namespace ddpo3d_fast
