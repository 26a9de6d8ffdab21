// Stage 5 in its other form: a warp is a bucket of 32 entries of a tile's list, a lane an entry. The tile's
// pixels pass from lane to lane, front to back, with what the entries before have left of them, so that a
// lane sums its own gradient and no sum crosses lanes. The blending left what each pixel was before each
// bucket. The idea is Taming 3DGS's (Mallick et al. 2024); the arrangement in memory is ours.
#include "blend_vjp.cuh"
#include "launch.cuh"

namespace ddpo3d_fast {
namespace {

// A pixel before the bucket: everything that is the same for all of its entries, and what the first one
// finds.
struct alignas(16) BucketPixel {
  PixelSlope slope;
  float remaining;     // the loss's slope along all that the pixel shows from the bucket on
  float transmittance; // before the bucket
};

template <int tile>
__global__ void __launch_bounds__(kWarp)
    bucket_vjp_kernel(RasterizeParams params, DeviceState state, RasterizeUpstream upstream,
                      DeviceScratch scratch) {
  await_previous_kernels();
  constexpr int pixels = tile * tile;
  const uint32_t bucket = blockIdx.x;
  if (state.counters->overflow || bucket >= state.counters->buckets)
    return;
  const uint32_t list = state.bucket_tile[bucket], camera = list / uint32_t(state.tiles);
  const uint32_t within = list % uint32_t(state.tiles), tiles_x = uint32_t(state.tiles_x);
  const int x0 = int(within % tiles_x) * tile, y0 = int(within / tiles_x) * tile;
  const int lane = threadIdx.x;
  const int32_t count = int32_t(state.tile_count[list]);
  const int32_t first = int32_t(bucket - state.bucket_begin[list]) * kWarp, index = first + lane;

  DDPO3D_SHARED(BucketPixel[pixels], ray);
  DDPO3D_SHARED(int32_t[pixels], stops); // entries that the pixel took, counted from the bucket's first
  int32_t last = 0;
  for (int p = lane; p < pixels; p += kWarp) {
    const int x = x0 + p % tile, y = y0 + p / tile;
    BucketPixel pixel = {};
    int32_t stop = 0;
    if (x < params.width && y < params.height) {
      const int64_t at = (camera * params.height + y) * params.width + x;
      stop = (state.stop[at] < count ? state.stop[at] : count) - first;
      if (stop > 0) {
        const float *behind = state.behind + (int64_t(bucket) * pixels + p) * kBehind;
        const float transmittance = state.transmittance[at];
        const PixelSlope s = load_slope(upstream, at);
        pixel.slope = s;
        pixel.transmittance = behind[4];
        pixel.remaining = s.red * behind[0] + s.green * behind[1] + s.blue * behind[2] + s.depth * behind[3] +
                          s.alpha * (behind[4] - transmittance) +
                          transmittance * along_background(s, params, camera);
      }
    }
    ray[p] = pixel;
    stops[p] = stop;
    last = last > stop ? last : stop;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const int32_t other = __shfl_xor_sync(kAllLanes, last, step);
    last = last > other ? last : other;
  }
  __syncwarp();

  TileSplat own = {};
  if (index < count) {
    const DeviceEntry entry = state.sorted[state.tile_begin[list] + index];
    own = tile_splat<tile>(state.projected[int64_t(camera) * params.num_gaussians + entry.gaussian], entry,
                           x0, y0);
  }
  const Splat splat = splat_of(own);
  const float cut = float(kLog2AlphaCut), most = float(kAlphaMax);
  float sums[kEntryGradients] = {};
  float transmittance = 0.0f, remaining = 0.0f; // of the pixel that this lane has just left
  const int steps = last > 0 ? pixels + kWarp - 1 : 0;
  for (int i = 0; i < steps; ++i) {
    transmittance = __shfl_up_sync(kAllLanes, transmittance, 1);
    remaining = __shfl_up_sync(kAllLanes, remaining, 1);
    const int p = i - lane;
    if (p < 0 || p >= pixels)
      continue;
    const BucketPixel pixel = ray[p];
    if (lane == 0) {
      transmittance = pixel.transmittance;
      remaining = pixel.remaining;
    }
    if (lane >= stops[p])
      continue;
    const Falloff<float> f =
        falloff<float>(splat, p % tile + 0.5f - 0.5f * tile, p / tile + 0.5f - 0.5f * tile);
    if (f.log2_alpha < cut)
      continue;
    const float unclamped = exp2_fast(f.log2_alpha), alpha = unclamped < most ? unclamped : most;
    const float slope = along(pixel.slope, splat.red, splat.green, splat.blue, splat.depth);
    const Composite<float> c = composite(alpha, transmittance);
    transmittance = c.transmittance;
    remaining = fnma(c.weight, slope, remaining);
    const float behind = remaining * reciprocal(transmittance);
    add_entry_gradient(f, unclamped, c.weight, c.weight * (slope - behind), pixel.slope, sums);
  }
  if (index < count)
    scratch.partial[own.slot] = {sums[0], sums[1], sums[2], sums[3], sums[4],     sums[5],
                                 sums[6], sums[7], sums[8], sums[9], {0.0f, 0.0f}};
}

} // namespace

void launch_bucket_vjp(const RasterizeParams &params, const RasterizeUpstream &upstream,
                       const DeviceState &state, const DeviceScratch &scratch, int tile,
                       cudaStream_t stream) {
  // As many blocks as there can be buckets; how many there are is known on the device only.
  const int64_t blocks = max_buckets(params, state, state.max_entries);
  launch_early("rasterize bucket vjp", tile == 8 ? bucket_vjp_kernel<8> : bucket_vjp_kernel<16>,
               dim3(uint32_t(blocks)), dim3(kWarp), 0, stream, params, state, upstream, scratch);
}

} // namespace ddpo3d_fast
