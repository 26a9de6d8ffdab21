// Stages 1 to 3 of the CUDA rasterizer: all views' Gaussians to the image, room for the tiles' lists, and the
// lists, unsorted.
//
// Where a list or a Gaussian's slots lie depends on the order of the atomic additions; what is in them, and
// the order in which they are summed, does not.
#include "launch.cuh"
#include "maths/view.h"
#include "rasterizer_state.cuh"

namespace ddpo3d_fast {
namespace {

constexpr int kRangeThreads = 256;

__device__ inline uint32_t warp_inclusive_sum(uint32_t value) {
  const int lane = threadIdx.x % kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t below = __shfl_up_sync(kAllLanes, value, step);
    value += lane >= step ? below : 0;
  }
  return value;
}

// Projects one Gaussian for one camera and counts its tiles.
template <int tile, int sh_degree>
__device__ uint32_t project_one(const RasterizeParams &params, const DeviceState &state, int32_t *radii,
                                int64_t index) {
  const int64_t c = index / params.num_gaussians, n = index % params.num_gaussians;
  radii[index] = 0;
  if (!may_show(params, n))
    return 0;
  const Camera<double> camera = load_camera(params, c);
  const Vec3<double> mean = load_mean(params, n);
  const double z = dot(camera.rotation.row[2], mean) + camera.translation.z;
  if (!sees_depth(params, camera, z) || !is_usable(params, n))
    return 0;
  const ViewedGaussian view = view_gaussian(params, camera, load_shape(params, n), n);
  const Footprint<double> &f = view.footprint;
  double x = view.projection.mean.x, y = view.projection.mean.y;
  if (params.means2d_offsets) {
    x += params.means2d_offsets[2 * index];
    y += params.means2d_offsets[2 * index + 1];
  }
  if (!is_drawable(f, x, y))
    return 0;
  const Ellipse e = ellipse(x, y, f);
  uint32_t *tile_count = state.tile_count + c * state.tiles;
  uint32_t hits = 0;
  visit_tiles<tile, kBlockWidth, kBlockHeight>(e, int32_t(state.tiles_x), int32_t(params.width),
                                               int32_t(params.height), [&](uint32_t index, uint32_t) {
                                                 atomicAdd(tile_count + index, 1u);
                                                 ++hits;
                                               });
  if (!hits)
    return 0;
  const Vec3<double> offset = mean - camera_position(camera);
  float color[3];
  view_color(sh_degree, params.colors + params.color_stride * n,
             Vec3<float>{float(offset.x), float(offset.y), float(offset.z)}, color);
  state.projected[index] = {x,
                            y,
                            float(f.w11),
                            float(f.w12),
                            float(f.w22),
                            float(f.reach * (0.5 / kLn2) + kLog2AlphaCut), // of the opacity after the factor
                            color[0],
                            color[1],
                            color[2],
                            float(z)};
  state.ellipses[index] = e;
  radii[index] = screen_radius(f);
  return hits;
}

template <int tile, int sh_degree>
__global__ void __launch_bounds__(kProjectThreads)
    project_kernel(RasterizeParams params, DeviceState state, int32_t *radii) {
  const int64_t index = int64_t(blockIdx.x) * kProjectThreads + threadIdx.x;
  const bool exists = index < params.num_cameras * params.num_gaussians;
  const uint32_t hits = exists ? project_one<tile, sh_degree>(params, state, radii, index) : 0;
  const uint32_t upto = warp_inclusive_sum(hits);
  unsigned long long base = 0;
  if (threadIdx.x % kWarp == kWarp - 1 && upto)
    base = atomicAdd(&state.counters->needed, (unsigned long long)(upto));
  base = __shfl_sync(kAllLanes, base, kWarp - 1);
  if (exists) {
    state.first_slot[index] = uint32_t(base) + upto - hits;
    state.num_slots[index] = hits;
  }
}

// Gives every tile its place among the entries.
__global__ void __launch_bounds__(kRangeThreads)
    range_kernel(DeviceState state, int64_t tiles, bool wants_buckets, uint64_t *needed) {
  const int64_t index = int64_t(blockIdx.x) * kRangeThreads + threadIdx.x;
  const int lane = threadIdx.x % kWarp;
  const uint32_t count = index < tiles ? state.tile_count[index] : 0;
  const uint32_t upto = warp_inclusive_sum(count);
  const uint32_t buckets = (count + kWarp - 1) / kWarp, buckets_upto = warp_inclusive_sum(buckets);
  uint32_t longest = count;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, longest, step);
    longest = longest > other ? longest : other;
  }
  unsigned long long base = 0;
  uint32_t bucket_base = 0;
  if (lane == kWarp - 1 && upto) {
    base = atomicAdd(&state.counters->placed, (unsigned long long)(upto));
    bucket_base = atomicAdd(&state.counters->buckets, buckets_upto);
    atomicMax(&state.counters->longest, longest);
  }
  base = __shfl_sync(kAllLanes, base, kWarp - 1);
  bucket_base = __shfl_sync(kAllLanes, bucket_base, kWarp - 1);
  if (index < tiles) {
    state.tile_begin[index] = uint32_t(base) + upto - count;
    if (wants_buckets)
      state.bucket_begin[index] = bucket_base + buckets_upto - buckets;
  }
  if (index == 0)
    *needed = state.counters->needed;
}

template <int tile>
__global__ void __launch_bounds__(kProjectThreads) scatter_kernel(RasterizeParams params, DeviceState state) {
  const int64_t index = int64_t(blockIdx.x) * kProjectThreads + threadIdx.x;
  const bool overflow = state.counters->needed > (unsigned long long)(state.max_entries);
  if (index == 0)
    state.counters->overflow = overflow;
  if (overflow || index >= params.num_cameras * params.num_gaussians || !state.num_slots[index])
    return;
  const int64_t first_tile = index / params.num_gaussians * state.tiles;
  const uint32_t gaussian = uint32_t(index % params.num_gaussians);
  const uint32_t depth_bits = __float_as_uint(state.projected[index].depth);
  uint32_t slot = state.first_slot[index];
  visit_tiles<tile, kBlockWidth, kBlockHeight>(
      state.ellipses[index], int32_t(state.tiles_x), int32_t(params.width), int32_t(params.height),
      [&](uint32_t within, uint32_t mask) {
        const int64_t list = first_tile + within;
        const uint32_t place = state.tile_begin[list] + atomicAdd(state.tile_cursor + list, 1u);
        state.entries[place] = {depth_bits, gaussian, slot++, mask};
      });
}

template <int tile, class... Arguments>
void launch_project(int sh_degree, dim3 grid, cudaStream_t stream, const Arguments &...arguments) {
  const auto run = [&](auto kernel) {
    launch("rasterize project", kernel, grid, dim3(kProjectThreads), 0, stream, arguments...);
  };
  switch (sh_degree) {
  case 0:
    return run(project_kernel<tile, 0>);
  case 1:
    return run(project_kernel<tile, 1>);
  case 2:
    return run(project_kernel<tile, 2>);
  case 3:
    return run(project_kernel<tile, 3>);
  default:
    return run(project_kernel<tile, -1>);
  }
}

} // namespace

// By the sizes alone, so that a run repeats and a CUDA graph stays valid. From counts and a model of time,
// not from measurements: benchmarks/rasterizer_plans.py. Where pixels are too few to fill the device, a pass
// takes as long as its longest list, and a thread a Gaussian is sooner through its tile's pixels than one a
// pixel through its tile's Gaussians. Else the work decides, and large tiles share sorting and loading.
RasterizePlan rasterize_plan_cuda(const RasterizeParams &params) {
  const int64_t pixels = params.width * params.height;
  const bool few_pixels = params.num_cameras * pixels <= 1 << 18;
  const bool long_lists = pixels <= 64 * params.num_gaussians; // a Gaussian for every small tile
  return few_pixels && long_lists ? RasterizePlan{8, true} : RasterizePlan{16, false};
}

int64_t rasterize_state_bytes_cuda(const RasterizeParams &params, const RasterizePlan &plan) {
  int64_t bytes, zeroed_bytes;
  carve_state(params, plan, nullptr, bytes, zeroed_bytes);
  return bytes;
}

int64_t rasterize_entries_bytes_cuda(const RasterizeParams &params, const RasterizePlan &plan,
                                     int64_t max_entries) {
  int64_t bytes, zeroed_bytes;
  DeviceState state = carve_state(params, plan, nullptr, bytes, zeroed_bytes);
  carve_entries(params, plan, max_entries, nullptr, state, bytes);
  return bytes;
}

void rasterize_project_cuda(const RasterizeParams &params, int32_t *radii, uint64_t *needed,
                            const RasterizeMemory &memory, void *stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  int64_t bytes, zeroed_bytes;
  const DeviceState state = carve_state(params, memory.plan, memory.state, bytes, zeroed_bytes);
  const cudaError_t cleared = cudaMemsetAsync(memory.state, 0, size_t(zeroed_bytes), on);
  if (cleared != cudaSuccess)
    throw std::runtime_error("rasterize, clearing " + std::to_string(zeroed_bytes) +
                             " bytes of counters: " + cudaGetErrorString(cleared));
  const dim3 grid(uint32_t(blocks_for(params.num_cameras * params.num_gaussians, kProjectThreads)));
  if (memory.plan.tile == 8)
    launch_project<8>(params.sh_degree, grid, on, params, state, radii);
  else
    launch_project<16>(params.sh_degree, grid, on, params, state, radii);
  const int64_t tiles = params.num_cameras * state.tiles;
  // At least one block, which reports that nothing is needed.
  launch("rasterize ranges", range_kernel, dim3(uint32_t(tiles ? blocks_for(tiles, kRangeThreads) : 1)),
         dim3(kRangeThreads), 0, on, state, tiles, memory.plan.buckets, needed);
}

void launch_scatter(const RasterizeParams &params, const DeviceState &state, int tile, cudaStream_t stream) {
  const dim3 grid(uint32_t(blocks_for(params.num_cameras * params.num_gaussians, kProjectThreads)));
  launch("rasterize scatter", tile == 8 ? scatter_kernel<8> : scatter_kernel<16>, grid, dim3(kProjectThreads),
         0, stream, params, state);
}

} // namespace ddpo3d_fast
