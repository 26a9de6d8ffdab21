// Stage 5 of the CUDA rasterizer: the blending's backward pass, back to front. A block is a tile, a thread a
// pixel. A warp sums a Gaussian's gradient over its pixels by a butterfly, the block over its warps, and the
// sum goes to the entry's own slot: no float is added atomically, so the bits are always the same.
#include "blend_vjp.cuh"
#include "launch.cuh"

namespace ddpo3d_fast {
namespace {

constexpr int kBatch = kWarp;

// Sums of ten values over a warp with 14 shuffles, where one value at a time takes 50: at each step a lane
// hands half of its values to the partner that keeps them. Lane 4 i ends with the sum of value i for i < 8,
// lanes 1 and 17 with those of values 8 and 9.
__device__ inline float warp_sums(const float (&values)[kEntryGradients]) {
  const int lane = threadIdx.x % kWarp;
  const bool upper16 = lane & 16, upper8 = lane & 8, upper4 = lane & 4;
  float four[4], two[2];
  for (int i = 0; i < 4; ++i)
    four[i] = (upper16 ? values[4 + i] : values[i]) +
              __shfl_xor_sync(kAllLanes, upper16 ? values[i] : values[4 + i], 16);
  for (int i = 0; i < 2; ++i)
    two[i] = (upper8 ? four[2 + i] : four[i]) + __shfl_xor_sync(kAllLanes, upper8 ? four[i] : four[2 + i], 8);
  float one = (upper4 ? two[1] : two[0]) + __shfl_xor_sync(kAllLanes, upper4 ? two[0] : two[1], 4);
  one += __shfl_xor_sync(kAllLanes, one, 2);
  one += __shfl_xor_sync(kAllLanes, one, 1);
  float rest =
      (upper16 ? values[9] : values[8]) + __shfl_xor_sync(kAllLanes, upper16 ? values[8] : values[9], 16);
  for (int step = 8; step > 0; step /= 2)
    rest += __shfl_xor_sync(kAllLanes, rest, step);
  return lane % 4 == 0 ? one : rest;
}

// Which value's sum a lane holds after warp_sums, or -1.
__device__ inline int sum_of_lane(int lane) {
  return lane % 4 == 0 ? lane / 4 : lane == 1 ? 8 : lane == 17 ? 9 : -1;
}

template <int tile>
__global__ void __launch_bounds__(tile *tile)
    blend_vjp_kernel(RasterizeParams params, DeviceState state, RasterizeUpstream upstream,
                     DeviceScratch scratch) {
  constexpr int threads = tile * tile, warps = threads / kWarp;
  const uint32_t list = blockIdx.x, camera = list / uint32_t(state.tiles),
                 within = list % uint32_t(state.tiles);
  if (state.counters->overflow)
    return;
  const uint32_t tiles_x = uint32_t(state.tiles_x);
  const int x0 = int(within % tiles_x) * tile, y0 = int(within / tiles_x) * tile;
  const int t = threadIdx.x, lane = t % kWarp, warp = t / kWarp;
  const TilePixel<tile> pixel = tile_pixel<tile>(params, camera, x0, y0);
  const int32_t count = int32_t(state.tile_count[list]);
  const int64_t begin = state.tile_begin[list];

  PixelSlope slope = {};
  float transmittance = 1.0f, behind = 0.0f;
  int32_t stop = 0; // the pixel took no entry from here on
  if (pixel.inside) {
    slope = load_slope(upstream, pixel.index);
    behind = along_background(slope, params, camera);
    transmittance = state.transmittance[pixel.index];
    stop = state.stop[pixel.index] < count ? state.stop[pixel.index] : count;
  }

  DDPO3D_SHARED(int32_t[warps], warp_stops);
  int32_t warp_stop = stop;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const int32_t other = __shfl_xor_sync(kAllLanes, warp_stop, step);
    warp_stop = warp_stop > other ? warp_stop : other;
  }
  if (lane == 0)
    warp_stops[warp] = warp_stop;
  __syncthreads();
  int32_t tile_stop = 0;
  for (int w = 0; w < warps; ++w)
    tile_stop = tile_stop > warp_stops[w] ? tile_stop : warp_stops[w];
  for (int32_t e = tile_stop + t; e < count; e += threads)
    scratch.partial[state.sorted[begin + e].slot] = DeviceEntryGradient{};

  DDPO3D_SHARED(TileSplat[kBatch], splats);
  DDPO3D_SHARED(DeviceEntryGradient[warps * kBatch], sums);
  const float cut = float(kLog2AlphaCut), most = float(kAlphaMax);
  for (int32_t end = tile_stop; end > 0; end -= kBatch) {
    const int32_t first = end > kBatch ? end - kBatch : 0, m = end - first;
    __syncthreads(); // the last batch's sums have been read
    if (t < m) {
      const DeviceEntry entry = state.sorted[begin + first + t];
      splats[t] =
          tile_splat<tile>(state.projected[camera * params.num_gaussians + entry.gaussian], entry, x0, y0);
    }
    __syncthreads();
    const bool touches = lane < m && first + lane < warp_stop && (splats[lane].mask >> warp & 1u);
    sums[warp * kBatch + lane] = DeviceEntryGradient{};
    __syncwarp();
    for (uint32_t hits = __ballot_sync(kAllLanes, touches); hits;) {
      const int32_t k = kWarp - 1 - __clz(int(hits));
      hits &= ~(1u << k);
      const Splat s = splat_of(splats[k]);
      const Falloff<float> f = falloff<float>(s, pixel.from_x, pixel.from_y);
      const bool hit = f.log2_alpha >= cut && first + k < stop;
      if (!__any_sync(kAllLanes, hit))
        continue;
      float values[kEntryGradients] = {};
      if (hit) {
        const float unclamped = exp2_fast(f.log2_alpha), alpha = unclamped < most ? unclamped : most;
        const CompositeGradient<float> c =
            composite_vjp(alpha, transmittance, behind, along(slope, s.red, s.green, s.blue, s.depth));
        transmittance = c.transmittance;
        behind = c.behind;
        entry_gradient(f, unclamped, c.weight, c.v_log_alpha, slope, values);
      }
      const float sum = warp_sums(values);
      const int which = sum_of_lane(lane);
      if (which >= 0)
        reinterpret_cast<float *>(&sums[warp * kBatch + k])[which] = sum;
    }
    __syncthreads();
    for (int32_t j = t; j < 3 * m; j += threads) { // a third of an entry's gradient each
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      for (int w = 0; w < warps; ++w) {
        const float4 part = reinterpret_cast<const float4 *>(&sums[w * kBatch + j / 3])[j % 3];
        sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
      }
      reinterpret_cast<float4 *>(&scratch.partial[splats[j / 3].slot])[j % 3] = sum;
    }
  }
}

// The tiles' parts of the backgrounds' gradients: a warp is a tile.
template <int tile>
__global__ void __launch_bounds__(kWarp)
    background_vjp_kernel(RasterizeParams params, DeviceState state, RasterizeUpstream upstream,
                          DeviceScratch scratch) {
  const uint32_t list = blockIdx.x, camera = list / uint32_t(state.tiles),
                 within = list % uint32_t(state.tiles), tiles_x = uint32_t(state.tiles_x);
  if (state.counters->overflow)
    return;
  const int x0 = int(within % tiles_x) * tile, y0 = int(within / tiles_x) * tile;
  float v[3] = {};
  for (int p = threadIdx.x; p < tile * tile; p += kWarp) {
    const int x = x0 + p % tile, y = y0 + p / tile;
    if (x >= params.width || y >= params.height)
      continue;
    const int64_t pixel = (camera * params.height + y) * params.width + x;
    const PixelSlope slope = load_slope(upstream, pixel);
    v[0] += state.transmittance[pixel] * slope.red;
    v[1] += state.transmittance[pixel] * slope.green;
    v[2] += state.transmittance[pixel] * slope.blue;
  }
  for (int c = 0; c < 3; ++c) {
    for (int step = kWarp / 2; step > 0; step /= 2)
      v[c] += __shfl_xor_sync(kAllLanes, v[c], step);
    if (threadIdx.x == 0)
      scratch.backgrounds[3 * int64_t(list) + c] = v[c];
  }
}

void launch_background_vjp(const RasterizeParams &params, const RasterizeUpstream &upstream,
                           const DeviceState &state, const DeviceScratch &scratch, int tile,
                           cudaStream_t stream) {
  launch("rasterize background vjp", tile == 8 ? background_vjp_kernel<8> : background_vjp_kernel<16>,
         dim3(uint32_t(params.num_cameras * state.tiles)), dim3(kWarp), 0, stream, params, state, upstream,
         scratch);
}

} // namespace

int64_t rasterize_scratch_bytes_cuda(const RasterizeParams &params, const RasterizePlan &plan,
                                     int64_t max_entries) {
  int64_t bytes, zeroed_bytes;
  const DeviceState state = carve_state(params, plan, nullptr, bytes, zeroed_bytes);
  carve_scratch(params, state.tiles, max_entries, nullptr, bytes);
  return bytes;
}

void launch_blend_vjp(const RasterizeParams &params, const RasterizeUpstream &upstream,
                      const DeviceState &state, const DeviceScratch &scratch, int tile, cudaStream_t stream) {
  launch("rasterize blend vjp", tile == 8 ? blend_vjp_kernel<8> : blend_vjp_kernel<16>,
         dim3(uint32_t(params.num_cameras * state.tiles)), dim3(uint32_t(tile * tile)), 0, stream, params,
         state, upstream, scratch);
}

void rasterize_backward_cuda(const RasterizeParams &params, const RasterizeUpstream &upstream,
                             const RasterizeGradients &gradients, const RasterizeMemory &memory,
                             void *scratch_memory, void *stream) {
  const DeviceState state = device_state(params, memory);
  int64_t bytes;
  const DeviceScratch scratch = carve_scratch(params, state.tiles, memory.max_entries, scratch_memory, bytes);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (memory.plan.buckets)
    launch_bucket_vjp(params, upstream, state, scratch, memory.plan.tile, on);
  else
    launch_blend_vjp(params, upstream, state, scratch, memory.plan.tile, on);
  if (gradients.backgrounds)
    launch_background_vjp(params, upstream, state, scratch, memory.plan.tile, on);
  launch_gaussians_vjp(params, upstream.penalties, gradients, state, scratch, on);
}

} // namespace ddpo3d_fast
