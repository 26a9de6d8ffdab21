// Stage 5 of the CUDA rasterizer: the blending's backward pass, back to front. A block is a tile, a thread
// two pixels. A warp sums a Gaussian's gradient over its pixels by a butterfly, the block over its warps, and
// the sum goes to the entry's own slot: no float is added atomically, so the bits are always the same.
#include "blend_vjp.cuh"
#include "launch.cuh"

namespace ddpo3d_fast {
namespace {

constexpr int kBatch = kWarp;
constexpr int kTogether = 2; // entries whose sums over a warp are made at once
// A multiprocessor's, at least; no more, or ptxas spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kVjpResidentThreads = 768;
#else
constexpr int kVjpResidentThreads = 896;
#endif

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

// What few ask for.
struct Rare {
  float clamped;      // times alpha before the clamp: what of a clamped one's gradient passes
  float abs_x, abs_y; // of the thread's pixels: sums of what each gives to the mean's gradient, absolute
};

// Adds what one pixel gives to a tile entry's gradient.
template <bool rare>
__device__ inline void add_entry_gradient(const Splat &splat, const Falloff<float> &f, float most,
                                          float unclamped, float weight, float v_log_alpha,
                                          const PixelSlope &s, float (&values)[kEntryGradients], Rare &more) {
  const float through = rare ? v_log_alpha * (more.clamped * unclamped) : 0.0f;
  const float w = unclamped <= most ? v_log_alpha : through;
  const float w1 = w * f.u1, w2 = w * f.u2;
  if (rare) { // Wᵀu, as footprint_vjp
    more.abs_x += fabsf(w1 * splat.w11);
    more.abs_y += fabsf(fma(w1, splat.w12, w2 * splat.w22));
  }
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

// Sums of the ten values of two entries over a warp with 22 shuffles, where one value at a time takes 100: at
// each step a lane hands half of its values to the partner that keeps them. Of the first entry the lanes 0 to
// 15 have the sums, of the second 16 to 31: the lane 2 i of them that of value i < 8, lanes 1 and 9 those of
// 8 and 9.
__device__ inline float warp_sums(const float (&values)[kTogether][kEntryGradients]) {
  const int lane = threadIdx.x % kWarp;
  const bool upper16 = lane & 16, upper8 = lane & 8, upper4 = lane & 4, upper2 = lane & 2;
  float ten[kEntryGradients], five[5];
  for (int i = 0; i < kEntryGradients; ++i)
    ten[i] = (upper16 ? values[1][i] : values[0][i]) +
             __shfl_xor_sync(kAllLanes, upper16 ? values[0][i] : values[1][i], 16);
  for (int i = 0; i < 5; ++i) { // values 0 to 3 and 8, or 4 to 7 and 9
    const float low = ten[i < 4 ? i : 8], high = ten[i < 4 ? 4 + i : 9];
    five[i] = (upper8 ? high : low) + __shfl_xor_sync(kAllLanes, upper8 ? low : high, 8);
  }
  float two[2];
  for (int i = 0; i < 2; ++i)
    two[i] = (upper4 ? five[2 + i] : five[i]) + __shfl_xor_sync(kAllLanes, upper4 ? five[i] : five[2 + i], 4);
  float one = (upper2 ? two[1] : two[0]) + __shfl_xor_sync(kAllLanes, upper2 ? two[0] : two[1], 2);
  one += __shfl_xor_sync(kAllLanes, one, 1);
  float rest = five[4];
  for (int step = 4; step > 0; step /= 2)
    rest += __shfl_xor_sync(kAllLanes, rest, step);
  return lane % 2 == 0 ? one : rest;
}

// Which value's sum a lane holds after warp_sums, or -1.
__device__ inline int sum_of_lane(int lane) {
  lane %= kWarp / kTogether;
  return lane % 2 == 0 ? lane / 2 : lane == 1 ? 8 : lane == 9 ? 9 : -1;
}

// Sums of the absolute values over a warp, into an entry's gradient.
__device__ inline void store_absolute(const Rare &more, DeviceEntryGradient &sums) {
  float x = more.abs_x, y = more.abs_y;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, step);
    y += __shfl_xor_sync(kAllLanes, y, step);
  }
  if (threadIdx.x % kWarp == 0) {
    sums.abs_x = float(2 * kLn2) * x;
    sums.abs_y = float(2 * kLn2) * y;
  }
}

// A pixel on its way from back to front.
struct BackwardRay {
  PixelSlope slope;
  float transmittance, behind; // CompositeGradient, blend.h
  int32_t stop;                // the pixel took no entry from here on
};

// What an entry means for a pixel before what lies behind it is known.
struct Contribution {
  Falloff<float> falloff;
  float unclamped;
  bool counts;
};

__device__ inline Contribution contribution(const Splat &s, float x, float y, bool touches) {
  const Falloff<float> f = falloff<float>(s, x, y);
  return {f, exp2_fast(f.log2_alpha), touches && f.log2_alpha >= float(kLog2AlphaCut)};
}

// One step to the front; adds what the pixel gives to the entry's gradient.
template <bool rare>
__device__ inline void step_back(const Splat &s, float most, const Contribution &c, BackwardRay &ray,
                                 float (&values)[kEntryGradients], Rare &more) {
  const float alpha = c.unclamped < most ? c.unclamped : most;
  const CompositeGradient<float> g =
      composite_vjp(alpha, ray.transmittance, ray.behind, along(ray.slope, s.red, s.green, s.blue, s.depth));
  if (!c.counts)
    return;
  ray.transmittance = g.transmittance;
  ray.behind = g.behind;
  add_entry_gradient<rare>(s, c.falloff, most, c.unclamped, g.weight, g.v_log_alpha, ray.slope, values, more);
}

// `rare`: with absolute sums, and maybe a gradient through the clamp.
template <bool rare>
__global__ void __launch_bounds__(kTileThreads, rare ? 1 : kVjpResidentThreads / kTileThreads)
    blend_vjp_kernel(RasterizeParams params, DeviceState state, RasterizeUpstream upstream,
                     DeviceScratch scratch) {
  await_previous_kernels();
  constexpr int threads = kTileThreads, warps = threads / kWarp;
  const uint32_t list = blockIdx.x, camera = list / uint32_t(state.tiles),
                 within = list % uint32_t(state.tiles);
  if (state.counters->overflow)
    return;
  const uint32_t tiles_x = uint32_t(state.tiles_x);
  const int x0 = int(within % tiles_x) * kTile, y0 = int(within / tiles_x) * kTile;
  const int t = threadIdx.x, lane = t % kWarp, warp = t / kWarp;
  const int32_t count = int32_t(state.tile_count[list]);
  const int64_t begin = state.tile_begin[list];

  BackwardRay rays[kPixels];
  float from_x, from_y[kPixels];
  uint32_t block[kPixels], blocks = 0;
  int32_t warp_stop = 0;
  for (int p = 0; p < kPixels; ++p) {
    const TilePixel pixel = tile_pixel(params, camera, x0, y0, p);
    rays[p] = {{}, 1.0f, 0.0f, 0};
    if (pixel.inside) {
      rays[p].slope = load_slope(upstream, pixel.index);
      rays[p].behind = along_background(rays[p].slope, params, camera);
      rays[p].transmittance = state.transmittance[pixel.index];
      rays[p].stop = state.stop[pixel.index] < count ? state.stop[pixel.index] : count;
    }
    from_x = pixel.from_x;
    from_y[p] = pixel.from_y;
    block[p] = pixel.block;
    blocks |= pixel.block;
    warp_stop = warp_stop > rays[p].stop ? warp_stop : rays[p].stop;
  }

  DDPO3D_SHARED(int32_t[warps], warp_stops);
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
  const auto first_of = [](int32_t end) { return end > kBatch ? end - kBatch : 0; };
  DeviceEntry next = {};
  if (first_of(tile_stop) + t < tile_stop && t < kBatch)
    next = state.sorted[begin + first_of(tile_stop) + t];
#pragma unroll 1
  for (int32_t end = tile_stop; end > 0; end -= kBatch) {
    const int32_t first = first_of(end), m = end - first;
    __syncthreads(); // the last batch's sums have been read
    if (t < m)
      splats[t] = tile_splat(state.projected[camera * params.num_gaussians + next.gaussian], next, x0, y0);
    __syncthreads();
    if (first_of(first) + t < first && t < kBatch) // fetched while this batch is at work
      next = state.sorted[begin + first_of(first) + t];
    const bool touches = lane < m && first + lane < warp_stop && (splats[lane].mask & blocks);
    sums[warp * kBatch + lane] = DeviceEntryGradient{};
    __syncwarp();
#pragma unroll 1
    for (uint32_t hits = __ballot_sync(kAllLanes, touches); hits;) {
      const int32_t k = kWarp - 1 - __clz(int(hits));
      hits &= ~(1u << k);
      const bool second = hits;
      const int32_t l = second ? kWarp - 1 - __clz(int(hits)) : k;
      hits &= ~(1u << l);
      const TileSplat a = splats[k], b = splats[l];
      Contribution of_a[kPixels], of_b[kPixels];
      bool any = false;
      for (int p = 0; p < kPixels; ++p) {
        of_a[p] =
            contribution(splat_of(a), from_x, from_y[p], (a.mask & block[p]) && first + k < rays[p].stop);
        of_b[p] = contribution(splat_of(b), from_x, from_y[p],
                               second && (b.mask & block[p]) && first + l < rays[p].stop);
        any = any || of_a[p].counts || of_b[p].counts;
      }
      if (!__any_sync(kAllLanes, any))
        continue;
      float values[kTogether][kEntryGradients] = {};
      const float clamped = rare && params.through_clamp ? 1.0f / params.alpha_max : 0.0f;
      Rare more_a = {clamped, 0.0f, 0.0f}, more_b = {clamped, 0.0f, 0.0f};
      for (int p = 0; p < kPixels; ++p)
        step_back<rare>(splat_of(a), params.alpha_max, of_a[p], rays[p], values[0], more_a);
      for (int p = 0; p < kPixels; ++p)
        step_back<rare>(splat_of(b), params.alpha_max, of_b[p], rays[p], values[1], more_b);
      if (rare) {
        store_absolute(more_a, sums[warp * kBatch + k]);
        if (second)
          store_absolute(more_b, sums[warp * kBatch + l]);
      }
      const float sum = warp_sums(values);
      const int which = sum_of_lane(lane), entry = lane < kWarp / kTogether ? k : l;
      if (which >= 0 && (second || lane < kWarp / kTogether))
        reinterpret_cast<float *>(&sums[warp * kBatch + entry])[which] = sum;
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
__global__ void __launch_bounds__(kWarp)
    background_vjp_kernel(RasterizeParams params, DeviceState state, RasterizeUpstream upstream,
                          DeviceScratch scratch) {
  await_previous_kernels();
  const uint32_t list = blockIdx.x, camera = list / uint32_t(state.tiles),
                 within = list % uint32_t(state.tiles), tiles_x = uint32_t(state.tiles_x);
  if (state.counters->overflow)
    return;
  const int x0 = int(within % tiles_x) * kTile, y0 = int(within / tiles_x) * kTile;
  float v[3] = {};
  for (int p = threadIdx.x; p < kTile * kTile; p += kWarp) {
    const int x = x0 + p % kTile, y = y0 + p / kTile;
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

} // namespace

int64_t rasterize_scratch_bytes_cuda(const RasterizeParams &params, int64_t max_entries) {
  int64_t bytes, zeroed_bytes;
  const DeviceState state = carve_state(params, nullptr, bytes, zeroed_bytes);
  carve_scratch(params, state.tiles, max_entries, nullptr, bytes);
  return bytes;
}

void rasterize_backward_cuda(const RasterizeParams &params, const RasterizeUpstream &upstream,
                             const RasterizeGradients &gradients, const RasterizeMemory &memory,
                             void *scratch_memory, void *stream) {
  const DeviceState state = device_state(params, memory);
  int64_t bytes;
  const DeviceScratch scratch = carve_scratch(params, state.tiles, memory.max_entries, scratch_memory, bytes);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const dim3 tiles(uint32_t(params.num_cameras * state.tiles));
  const bool rare = gradients.means2d_abs || params.through_clamp;
  launch_early("rasterize blend vjp", rare ? blend_vjp_kernel<true> : blend_vjp_kernel<false>, tiles,
               dim3(kTileThreads), 0, on, params, state, upstream, scratch);
  if (gradients.backgrounds)
    launch_early("rasterize background vjp", background_vjp_kernel, tiles, dim3(kWarp), 0, on, params, state,
                 upstream, scratch);
  launch_gaussians_vjp(params, upstream.opacity_penalty, gradients, state, scratch, on);
}

} // namespace ddpo3d_fast
