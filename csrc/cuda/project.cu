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

constexpr int kClearThreads = 256, kRangeThreads = 256;
constexpr int kScattered = 8; // Gaussians of a warp

__device__ inline uint32_t warp_inclusive_sum(uint32_t value) {
  const int lane = threadIdx.x % kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t below = __shfl_up_sync(kAllLanes, value, step);
    value += lane >= step ? below : 0;
  }
  return value;
}

// A warp goes through the tiles that its Gaussians may touch. Not a lane a Gaussian, of which one may touch a
// tile and the next a thousand, but a lane a strip of blocks of a Gaussian's row of tiles.
//
// `rows` is how many rows of tiles the lane's own Gaussian has, of the image's that starts with tile
// `first_tile`, `ellipses` the warp's. Calls visit(lane of the Gaussian, tile, mask, place), where the places
// count the warp's tiles, Gaussian by Gaussian and row by row; without `places` they are all 0.
template <bool places, class Visit>
__device__ void visit_rows(const RasterizeParams &params, const DeviceState &state, uint32_t rows,
                           uint32_t first_tile, const Ellipse *ellipses, const Visit &visit) {
  constexpr int strips = kTile / kBlockHeight, blocks = kTile / kBlockWidth;
  const int lane = threadIdx.x % kWarp, strip = lane % strips, begin = lane - strip;
  const uint32_t upto = warp_inclusive_sum(rows), total = __shfl_sync(kAllLanes, upto, kWarp - 1);
  uint32_t before = 0;
#pragma unroll 1
  for (uint32_t next = 0; next < total; next += kWarp / strips) {
    const uint32_t row = next + uint32_t(lane / strips);
    int owner = 0; // the first lane with more rows up to itself
    for (int step = kWarp / 2; step > 0; step /= 2)
      owner += __shfl_sync(kAllLanes, upto, owner + step - 1) <= row ? step : 0;
    const uint32_t within = row - __shfl_sync(kAllLanes, upto - rows, owner);
    const uint32_t tiles_before = __shfl_sync(kAllLanes, first_tile, owner);
    Range touched = {0, -1};
    int32_t tile_y = 0;
    if (row < total) {
      const Ellipse e = ellipses[owner];
      const Range all = rows_of(e, int32_t(params.height));
      tile_y = all.first / kTile + int32_t(within);
      touched = blocks_of<kBlockWidth, kBlockHeight>(e, all, tile_y * kTile + strip * kBlockHeight,
                                                     int32_t(params.width));
    }
    int32_t first = is_empty(touched) ? INT32_MAX : touched.first / blocks, last = touched.last / blocks;
    if (is_empty(touched))
      last = -1;
    Range strip_touched[strips];
    for (int s = 0; s < strips; ++s)
      strip_touched[s] = {__shfl_sync(kAllLanes, touched.first, begin + s),
                          __shfl_sync(kAllLanes, touched.last, begin + s)};
    for (int step = 1; step < strips; step *= 2) {
      const int32_t other_first = __shfl_xor_sync(kAllLanes, first, step);
      const int32_t other_last = __shfl_xor_sync(kAllLanes, last, step);
      first = first < other_first ? first : other_first;
      last = last > other_last ? last : other_last;
    }
    if (last < 0)
      first = 0;
    const auto mask_of = [&](int32_t tile_x) {
      uint32_t mask = 0;
      for (int s = 0; s < strips; ++s)
        mask |= strip_mask<blocks>(strip_touched[s], tile_x) << (s * blocks);
      return tile_x <= last ? mask : 0u;
    };
    const auto of_row = [&](bool has) { // a bit for each of the row's lanes that has it
      return __ballot_sync(kAllLanes, has) >> begin & ((1u << strips) - 1u);
    };
    uint32_t place = 0;
    if (places) {
      uint32_t tiles = 0;
      for (int32_t x = first + strip; __any_sync(kAllLanes, x <= last); x += strips)
        tiles += uint32_t(__popc(of_row(mask_of(x) != 0)));
      const uint32_t tiles_upto = warp_inclusive_sum(strip ? 0 : tiles);
      place = before + tiles_upto - tiles;
      before += __shfl_sync(kAllLanes, tiles_upto, kWarp - 1);
    }
    for (int32_t x = first + strip; __any_sync(kAllLanes, x <= last); x += strips) {
      const uint32_t mask = mask_of(x), having = places ? of_row(mask != 0) : 0;
      if (mask)
        visit(owner, tiles_before + uint32_t(tile_y) * uint32_t(state.tiles_x) + uint32_t(x), mask,
              place + uint32_t(__popc(having & ((1u << strip) - 1u))));
      place += uint32_t(__popc(having));
    }
  }
}

// How many rows of tiles an ellipse meets.
__device__ inline uint32_t tile_rows(const Ellipse &e, int64_t height) {
  const Range rows = rows_of(e, int32_t(height));
  return is_empty(rows) ? 0 : uint32_t(rows.last / kTile - rows.first / kTile + 1);
}

struct Radii {
  int32_t drawn;  // pixels, or 0 where it cannot be drawn
  int32_t square; // with params.sigmas, whether or not it can be drawn
  BoxRadii box;
};

// Projects one Gaussian for one camera.
template <int sh_degree, bool given>
__device__ Radii project_one(const RasterizeParams &params, int64_t c, int64_t n, int64_t index,
                             bool wants_box, DeviceGaussian &projected, Ellipse &outline) {
  Radii radii = {};
  if (!may_show(params, n) && !(params.sigmas > 0))
    return radii;
  Vec3<double> offset = {};
  Vec2<double> on_image = {};
  Footprint<double> f;
  double z;
  if (given) {
    if (!is_given(params, index, n))
      return radii;
    z = params.depths[index];
    f = given_footprint(params, index, n);
  } else {
    const Camera<double> camera = load_camera(params, c);
    const Vec3<double> mean = load_mean(params, n);
    z = dot(camera.rotation.row[2], mean) + camera.translation.z;
    const bool usable = is_usable(params, n); // asked first, so that all numbers are on their way together
    if (!sees_depth(params, camera, z) || !usable)
      return radii;
    const ViewedGaussian view = view_gaussian(params, camera, load_shape(params, n), n);
    f = view.footprint;
    on_image = view.projection.mean;
    offset = mean - view_position(params, camera, c);
  }
  on_image = image_mean(params, index, on_image);
  const double x = on_image.x, y = on_image.y;
  if (params.sigmas > 0) {
    radii.square = square_radius(params, f, x, y);
    if (!radii.square)
      return radii;
  }
  if (!is_drawable(f, x, y))
    return radii;
  if (wants_box || params.radius_clip > 0) {
    radii.box = box_radii(params, f, x, y);
    if (!radii.box.x)
      return radii;
  }
  outline = ellipse(x, y, f, radii.square);
  float color[3];
  view_color(sh_degree, params.colors + params.color_stride * n,
             Vec3<float>{float(offset.x), float(offset.y), float(offset.z)}, color);
  projected = {x,
               y,
               float(f.w11),
               float(f.w12),
               float(f.w22),
               float(f.reach * (0.5 / kLn2) + kLog2AlphaCut), // of the opacity after the factor
               color[0],
               color[1],
               color[2],
               float(z)};
  radii.drawn = params.sigmas > 0 ? radii.square : screen_radius(f);
  return radii;
}

// `given`: the footprints are.
template <int sh_degree, bool given>
__global__ void __launch_bounds__(kProjectThreads)
    project_kernel(RasterizeParams params, DeviceState state, int32_t *radii, int32_t *box_radii) {
  await_previous_kernels();
  DDPO3D_SHARED(Ellipse[kProjectThreads], ellipses);
  DDPO3D_SHARED(uint32_t[kProjectThreads], hits);
  const int64_t index = int64_t(blockIdx.x) * kProjectThreads + threadIdx.x;
  const int t = threadIdx.x, warp_begin = t - t % kWarp;
  uint32_t rows = 0, first_tile = 0;
  Radii found = {};
  hits[t] = 0;
  const bool exists = index < params.num_cameras * params.num_gaussians;
  if (exists) {
    const int64_t c = index / params.num_gaussians, n = index - c * params.num_gaussians;
    DeviceGaussian projected;
    Ellipse outline;
    found = project_one<sh_degree, given>(params, c, n, index, box_radii != nullptr, projected, outline);
    if (found.drawn) {
      state.projected[index] = projected;
      state.ellipses[index] = ellipses[t] = outline;
      rows = tile_rows(outline, params.height);
      first_tile = uint32_t(c * state.tiles);
    }
  }
  __syncwarp();
  visit_rows<false>(params, state, rows, first_tile, ellipses + warp_begin,
                    [&](int owner, uint32_t list, uint32_t, uint32_t) {
                      atomicAdd(state.tile_count + list, 1u);
                      atomicAdd(hits + warp_begin + owner, 1u);
                    });
  __syncwarp();
  const uint32_t own = hits[t], upto = warp_inclusive_sum(own);
  unsigned long long base = 0;
  if (t % kWarp == kWarp - 1 && upto)
    base = atomicAdd(&state.counters->needed, (unsigned long long)(upto));
  base = __shfl_sync(kAllLanes, base, kWarp - 1);
  if (exists) {
    state.first_slot[index] = uint32_t(base) + upto - own;
    state.num_slots[index] = own;
    radii[index] = own ? found.drawn : found.square;
    if (box_radii) {
      box_radii[2 * index] = found.box.x;
      box_radii[2 * index + 1] = found.box.y;
    }
  }
}

// A kernel, so that the next one can begin early, which it cannot after a memset.
__global__ void __launch_bounds__(kClearThreads) clear_kernel(uint4 *memory, int64_t count) {
  await_previous_kernels();
  const int64_t index = int64_t(blockIdx.x) * kClearThreads + threadIdx.x;
  if (index < count)
    memory[index] = make_uint4(0, 0, 0, 0);
}

// Gives every tile its place among the entries.
__global__ void __launch_bounds__(kRangeThreads)
    range_kernel(DeviceState state, int64_t tiles, uint64_t *needed) {
  await_previous_kernels();
  const int64_t index = int64_t(blockIdx.x) * kRangeThreads + threadIdx.x;
  const int lane = threadIdx.x % kWarp;
  const uint32_t count = index < tiles ? state.tile_count[index] : 0;
  const uint32_t upto = warp_inclusive_sum(count);
  uint32_t longest = count;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, longest, step);
    longest = longest > other ? longest : other;
  }
  unsigned long long base = 0;
  if (lane == kWarp - 1 && upto) {
    base = atomicAdd(&state.counters->placed, (unsigned long long)(upto));
    atomicMax(&state.counters->longest, longest);
  }
  base = __shfl_sync(kAllLanes, base, kWarp - 1);
  if (index < tiles)
    state.tile_begin[index] = uint32_t(base) + upto - count;
  if (index == 0)
    *needed = state.counters->needed;
}

// A warp has few Gaussians, so that many warps wait together for what the atomic additions return.
__global__ void __launch_bounds__(kProjectThreads) scatter_kernel(RasterizeParams params, DeviceState state) {
  await_previous_kernels();
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = (int64_t(blockIdx.x) * kProjectThreads + threadIdx.x) / kWarp;
  const int64_t first = warp * kScattered, index = first + lane;
  const bool overflow = state.counters->needed > (unsigned long long)(state.max_entries);
  if (first + lane == 0)
    state.counters->overflow = overflow;
  const int64_t views = params.num_cameras * params.num_gaussians;
  if (overflow || first >= views)
    return;
  uint32_t rows = 0, first_tile = 0, gaussian = 0, depth_bits = 0;
  if (lane < kScattered && index < views && state.num_slots[index]) {
    const int64_t c = index / params.num_gaussians;
    rows = tile_rows(state.ellipses[index], params.height);
    first_tile = uint32_t(c * state.tiles);
    gaussian = uint32_t(index - c * params.num_gaussians);
    depth_bits = __float_as_uint(state.projected[index].depth);
  }
  // The lanes' Gaussians have their slots one after the other.
  const uint32_t first_slot = state.first_slot[first];
  DDPO3D_SHARED(uint2[kProjectThreads], keys);
  uint2 *const of_warp = keys + threadIdx.x / kWarp * kWarp;
  of_warp[lane] = make_uint2(depth_bits, gaussian);
  __syncwarp();
  visit_rows<true>(params, state, rows, first_tile, state.ellipses + first,
                   [&](int owner, uint32_t list, uint32_t mask, uint32_t place) {
                     const uint32_t at = state.tile_begin[list] + atomicAdd(state.tile_cursor + list, 1u);
                     state.entries[at] = {of_warp[owner].x, of_warp[owner].y, first_slot + place, mask};
                   });
}

template <class... Arguments>
void launch_project(int sh_degree, bool given, dim3 grid, cudaStream_t stream,
                    const Arguments &...arguments) {
  const auto run = [&](auto kernel) {
    launch_early("rasterize project", kernel, grid, dim3(kProjectThreads), 0, stream, arguments...);
  };
  if (given) // with plain colours
    return run(project_kernel<-1, true>);
  switch (sh_degree) {
  case 0:
    return run(project_kernel<0, false>);
  case 1:
    return run(project_kernel<1, false>);
  case 2:
    return run(project_kernel<2, false>);
  case 3:
    return run(project_kernel<3, false>);
  default:
    return run(project_kernel<-1, false>);
  }
}

} // namespace

int64_t rasterize_state_bytes_cuda(const RasterizeParams &params) {
  int64_t bytes, zeroed_bytes;
  carve_state(params, nullptr, bytes, zeroed_bytes);
  return bytes;
}

int64_t rasterize_entries_bytes_cuda(int64_t max_entries) {
  int64_t bytes;
  DeviceState state = {};
  carve_entries(max_entries, nullptr, state, bytes);
  return bytes;
}

void rasterize_project_cuda(const RasterizeParams &params, const RasterizeOutputs &outputs, uint64_t *needed,
                            const RasterizeMemory &memory, void *stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  int64_t bytes, zeroed_bytes;
  const DeviceState state = carve_state(params, memory.state, bytes, zeroed_bytes);
  const int64_t quads = zeroed_bytes / int64_t(sizeof(uint4));
  launch_early("rasterize clear", clear_kernel, dim3(uint32_t(blocks_for(quads, kClearThreads))),
               dim3(kClearThreads), 0, on, static_cast<uint4 *>(memory.state), quads);
  const dim3 grid(uint32_t(blocks_for(params.num_cameras * params.num_gaussians, kProjectThreads)));
  launch_project(params.sh_degree, params.covariances2d != nullptr, grid, on, params, state, outputs.radii,
                 outputs.box_radii);
  const int64_t tiles = params.num_cameras * state.tiles;
  // At least one block, which reports that nothing is needed.
  launch_early("rasterize ranges", range_kernel, dim3(uint32_t(tiles ? blocks_for(tiles, kRangeThreads) : 1)),
               dim3(kRangeThreads), 0, on, state, tiles, needed);
}

void launch_scatter(const RasterizeParams &params, const DeviceState &state, cudaStream_t stream) {
  const int64_t per_block = kProjectThreads / kWarp * kScattered;
  const dim3 grid(uint32_t(blocks_for(params.num_cameras * params.num_gaussians, per_block)));
  launch_early("rasterize scatter", scatter_kernel, grid, dim3(kProjectThreads), 0, stream, params, state);
}

} // namespace ddpo3d_fast
