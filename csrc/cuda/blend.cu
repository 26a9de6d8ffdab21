// Stage 4 of the CUDA rasterizer: every tile sorts its list and blends it, front to back. A block is a tile,
// a warp 8 x 4 of its pixels, which skips the Gaussians whose ellipse does not touch them.
#include "launch.cuh"
#include "rasterizer_state.cuh"
#include "sort_list.cuh"

namespace ddpo3d_fast {
namespace {

constexpr int kResidentThreads =
    1024; // a multiprocessor's, at least; told no number, ptxas saves registers by spills

// Entries that a block sorts before it must merge, 10 bytes of shared memory each. By the model of
// benchmarks/rasterizer_plans.py fewer cost long lists merges, more cost the device resident blocks.
constexpr int kSortedAtOnce = 1024;

template <int tile, bool buckets>
__global__ void __launch_bounds__(tile *tile, kResidentThreads / (tile * tile))
    blend_kernel(RasterizeParams params, DeviceState state, RasterizeOutputs outputs) {
  constexpr int threads = tile * tile, batch = threads;
  const uint32_t list = blockIdx.x, camera = list / uint32_t(state.tiles),
                 within = list % uint32_t(state.tiles);
  const uint32_t tiles_x = uint32_t(state.tiles_x);
  const int x0 = int(within % tiles_x) * tile, y0 = int(within / tiles_x) * tile;
  const int t = threadIdx.x, lane = t % kWarp, warp = t / kWarp;
  if (state.counters->overflow) {
    const TilePixel<tile> pixel = tile_pixel<tile>(params, camera, x0, y0);
    if (pixel.inside) {
      const float nan = __int_as_float(0x7fc00000);
      for (int c = 0; c < 3; ++c)
        outputs.rgb[3 * pixel.index + c] = nan;
      outputs.alpha[pixel.index] = outputs.depth[pixel.index] = nan;
    }
    return;
  }
  const int32_t count = int32_t(state.tile_count[list]);
  const int64_t begin = state.tile_begin[list];
  sort_list<threads, kSortedAtOnce>(state.entries + begin, state.sorted + begin, count);

  DDPO3D_SHARED(TileSplat[batch], splats);
  const TilePixel<tile> pixel = tile_pixel<tile>(params, camera, x0, y0);
  const float cut = float(kLog2AlphaCut), most = float(kAlphaMax), least = float(kTransmittanceMin);
  float transmittance = 1.0f, red = 0.0f, green = 0.0f, blue = 0.0f, depth = 0.0f;
  int32_t stop = pixel.inside ? kNeverStopped : 0; // pixels beyond the edge have stopped before they began
  bool live = pixel.inside;
  const uint32_t first_bucket = buckets ? state.bucket_begin[list] : 0;
  const int place = (pixel.y - y0) * tile + pixel.x - x0; // in the tile, row by row
  int32_t last_bucket = -1;
  if (buckets)
#pragma unroll 1
    for (int32_t b = t; b < (count + kWarp - 1) / kWarp; b += threads)
      state.bucket_tile[first_bucket + b] = list;
  for (int32_t first = 0; first < count; first += batch) {
    if (!__syncthreads_or(live))
      break;
    const int32_t m = count - first < batch ? count - first : batch;
    if (t < m) {
      const DeviceEntry entry = state.sorted[begin + first + t];
      splats[t] =
          tile_splat<tile>(state.projected[camera * params.num_gaussians + entry.gaussian], entry, x0, y0);
    }
    __syncthreads();
    for (int32_t group = 0; group < m && __any_sync(kAllLanes, live); group += kWarp) {
      const bool was_live = live;
      float *const behind =
          buckets
              ? state.behind + ((int64_t(first_bucket) + (first + group) / kWarp) * threads + place) * kBehind
              : nullptr;
      if (buckets && was_live)
        behind[4] = transmittance;
      const bool touches = group + lane < m && (splats[group + lane].mask >> warp & 1u);
      for (uint32_t hits = __ballot_sync(kAllLanes, touches); hits; hits &= hits - 1) {
        const int32_t k = group + __ffs(int(hits)) - 1;
        const Splat s = splat_of(splats[k]);
        const Falloff<float> f = falloff<float>(s, pixel.from_x, pixel.from_y);
        if (!live || f.log2_alpha < cut)
          continue;
        const float unclamped = exp2_fast(f.log2_alpha);
        const Composite<float> c = composite(unclamped < most ? unclamped : most, transmittance);
        if (c.transmittance <= least) {
          stop = first + k;
          live = false;
          continue;
        }
        transmittance = c.transmittance;
        red = fma(c.weight, s.red, red);
        green = fma(c.weight, s.green, green);
        blue = fma(c.weight, s.blue, blue);
        depth = fma(c.weight, s.depth, depth);
      }
      if (buckets && was_live) { // what this bucket alone contributed
        behind[0] = red;
        behind[1] = green;
        behind[2] = blue;
        behind[3] = depth;
        red = green = blue = depth = 0.0f;
        last_bucket = (first + group) / kWarp;
      }
    }
  }

  if (!pixel.inside)
    return;
  // From the back, so that what lies behind a bucket keeps its own digits, however much lies before it.
  for (int32_t b = last_bucket; buckets && b >= 0; --b) {
    float *const behind = state.behind + ((int64_t(first_bucket) + b) * threads + place) * kBehind;
    behind[0] = red += behind[0];
    behind[1] = green += behind[1];
    behind[2] = blue += behind[2];
    behind[3] = depth += behind[3];
  }
  const float *background = params.backgrounds ? params.backgrounds + 3 * camera : nullptr;
  outputs.rgb[3 * pixel.index] = red + transmittance * (background ? background[0] : 0.0f);
  outputs.rgb[3 * pixel.index + 1] = green + transmittance * (background ? background[1] : 0.0f);
  outputs.rgb[3 * pixel.index + 2] = blue + transmittance * (background ? background[2] : 0.0f);
  outputs.alpha[pixel.index] = 1.0f - transmittance;
  outputs.depth[pixel.index] = depth;
  state.transmittance[pixel.index] = transmittance;
  state.stop[pixel.index] = stop;
}

} // namespace

void rasterize_blend_cuda(const RasterizeParams &params, const RasterizeOutputs &outputs,
                          const RasterizeMemory &memory, void *stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const DeviceState state = device_state(params, memory);
  launch_scatter(params, state, memory.plan.tile, on);
  const auto kernel = memory.plan.tile == 8
                          ? memory.plan.buckets ? blend_kernel<8, true> : blend_kernel<8, false>
                      : memory.plan.buckets ? blend_kernel<16, true>
                                            : blend_kernel<16, false>;
  launch("rasterize blend", kernel, dim3(uint32_t(params.num_cameras * state.tiles)),
         dim3(uint32_t(memory.plan.tile * memory.plan.tile)), 0, on, params, state, outputs);
}

} // namespace ddpo3d_fast
