// Stage 6 of the CUDA rasterizer: the tiles' partial gradients to the Gaussians', cameras' and backgrounds'.
// A thread is a Gaussian before a camera; what the cameras give is added up in fixed order, in double
// precision.
#include "blend_vjp.cuh"
#include "launch.cuh"
#include "maths/view.h"

namespace ddpo3d_fast {
namespace {

constexpr int kSumThreads = 256;
constexpr int kInFlight = 4;     // slots whose loads a thread waits for together
constexpr uint32_t kFew = 32;    // slots that a thread sums alone; more are the warp's
constexpr int kShapeValues = 13; // v_mean, v_root, v_opacity

struct EntrySum {
  double values[kEntryGradients]; // as add_entry_gradient (blend_vjp.cu) orders them
};

__device__ inline void add_slots(const DeviceEntryGradient *partial, uint32_t first, uint32_t step,
                                 uint32_t count, EntrySum &sum) {
  const float4 *const quads = reinterpret_cast<const float4 *>(partial);
#pragma unroll 1
  for (uint32_t k = first; k < count; k += kInFlight * step) {
    float4 a[kInFlight], b[kInFlight], c[kInFlight];
    for (uint32_t i = 0; i < kInFlight; ++i) {
      const uint32_t slot = k + i * step;
      a[i] = b[i] = c[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (slot < count) {
        a[i] = quads[3 * int64_t(slot)];
        b[i] = quads[3 * int64_t(slot) + 1];
        c[i] = quads[3 * int64_t(slot) + 2];
      }
    }
    for (int i = 0; i < kInFlight; ++i) {
      const float values[kEntryGradients] = {a[i].x, a[i].y, a[i].z, a[i].w, b[i].x,
                                             b[i].y, b[i].z, b[i].w, c[i].x, c[i].y};
      for (int j = 0; j < kEntryGradients; ++j)
        sum.values[j] += values[j];
    }
  }
}

// Sums of the slots of every lane's Gaussian. Long rows of slots are shared by the warp, a lane every 32nd,
// and added up by a tree that depends on their number alone.
__device__ inline EntrySum sum_slots(const DeviceEntryGradient *partial, uint32_t first, uint32_t count) {
  const int lane = threadIdx.x % kWarp;
  EntrySum sum = {};
  if (count <= kFew)
    add_slots(partial + first, 0, 1, count, sum);
#pragma unroll 1
  for (uint32_t many = __ballot_sync(kAllLanes, count > kFew); many; many &= many - 1) {
    const int owner = __ffs(int(many)) - 1;
    EntrySum part = {};
    add_slots(partial + __shfl_sync(kAllLanes, first, owner), uint32_t(lane), kWarp,
              __shfl_sync(kAllLanes, count, owner), part);
    for (int j = 0; j < kEntryGradients; ++j) {
      for (int step = kWarp / 2; step > 0; step /= 2)
        part.values[j] += __shfl_xor_sync(kAllLanes, part.values[j], step);
      sum.values[j] = lane == owner ? part.values[j] : sum.values[j];
    }
  }
  return sum;
}

// Adds up a warp's values, or those of each `lanes` of them, a power of two, in fixed order; the first has
// the sum.
__device__ inline double warp_sum(double value, int lanes = kWarp) {
  for (int step = lanes / 2; step > 0; step /= 2)
    value += __shfl_down_sync(kAllLanes, value, step);
  return value;
}

// Where footprints were given, not projected: a thread is a Gaussian, whose views come one after the other.
__global__ void __launch_bounds__(kGradientThreads)
    given_vjp_kernel(RasterizeParams params, DeviceState state, float opacity_penalty,
                     RasterizeGradients gradients, DeviceScratch scratch) {
  await_previous_kernels();
  const int64_t C = params.num_cameras, N = params.num_gaussians;
  const int64_t n = int64_t(blockIdx.x) * kGradientThreads + threadIdx.x;
  const bool exists = n < N, overflow = state.counters->overflow;
  double v_opacity = 0.0;
  Vec3<double> v_color = {};
#pragma unroll 1
  for (int64_t c = 0; c < C; ++c) {
    const int64_t index = c * N + n;
    const uint32_t slots = exists && !overflow ? state.num_slots[index] : 0;
    const EntrySum sum = sum_slots(scratch.partial, slots ? state.first_slot[index] : 0, slots);
    FootprintGradient<double> v = {};
    const double *s = sum.values;
    if (slots)
      v = footprint_vjp(given_footprint(params, index, n), load_opacity(params, n), load_dilation(params),
                        {s[0], s[1], s[2], s[3], s[4], s[5]});
    v_opacity += v.v_opacity;
    v_color = v_color + Vec3<double>{s[6], s[7], s[8]};
    if (exists && gradients.means2d) {
      gradients.means2d[2 * index] = float(v.v_mean.x);
      gradients.means2d[2 * index + 1] = float(v.v_mean.y);
    }
    if (exists && gradients.covariances2d) {
      gradients.covariances2d[3 * index] = float(v.v_xx);
      gradients.covariances2d[3 * index + 1] = float(v.v_xy);
      gradients.covariances2d[3 * index + 2] = float(v.v_yy);
    }
    if (exists && gradients.depths)
      gradients.depths[index] = float(s[9]);
  }
  if (!exists)
    return;
  if (gradients.opacities)
    gradients.opacities[n] = float(opacity_vjp(params, n, v_opacity, opacity_penalty));
  if (gradients.colors) {
    gradients.colors[3 * n] = float(v_color.x);
    gradients.colors[3 * n + 1] = float(v_color.y);
    gradients.colors[3 * n + 2] = float(v_color.z);
  }
}

// The absolute sums: a thread is a Gaussian before a camera.
__global__ void __launch_bounds__(kSumThreads)
    absolute_vjp_kernel(DeviceState state, DeviceScratch scratch, float *means2d_abs, int64_t views) {
  await_previous_kernels();
  const int64_t index = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (index >= views)
    return;
  const uint32_t slots = state.counters->overflow ? 0 : state.num_slots[index];
  double x = 0.0, y = 0.0;
  for (uint32_t k = 0; k < slots; ++k) {
    const DeviceEntryGradient &g = scratch.partial[state.first_slot[index] + k];
    x += g.abs_x;
    y += g.abs_y;
  }
  means2d_abs[2 * index] = float(x);
  means2d_abs[2 * index + 1] = float(y);
}

// A block has `views` cameras side by side, as gradient_views says, and all of their Gaussians that fit.
template <int sh_degree, bool wants_cameras>
__global__ void __launch_bounds__(kGradientThreads, wants_cameras ? 2 : 3)
    gaussians_vjp_kernel(RasterizeParams params, DeviceState state, float opacity_penalty,
                         RasterizeGradients gradients, DeviceScratch scratch, int views) {
  await_previous_kernels();
  constexpr int threads = kGradientThreads;
  constexpr int color_values = sh_degree < 0 ? 3 : 3 * (sh_degree + 1) * (sh_degree + 1);
  const int64_t C = params.num_cameras, N = params.num_gaussians;
  const int t = threadIdx.x, per_view = threads / views, view_of_block = t / per_view,
            first_view = t % per_view;
  const int64_t n = int64_t(blockIdx.x) * per_view + first_view;
  const bool exists = n < N, overflow = state.counters->overflow;
  const float *colors = params.colors + params.color_stride * n;
  float *const v_colors = gradients.colors && exists ? gradients.colors + params.color_stride * n : nullptr;

  // A thread's own, side by side with those of the same Gaussian in other views.
  DDPO3D_SHARED(double[kShapeValues * threads], shape_parts);
  DDPO3D_SHARED(float[color_values * threads], color_parts);
  DDPO3D_SHARED(Camera<double>[kMostViews], cameras);
  for (int i = 0; i < kShapeValues; ++i)
    shape_parts[i * threads + t] = 0.0;

#pragma unroll 1
  for (int64_t first = 0; first < C; first += views) {
    const int64_t c = first + view_of_block, index = c * N + n;
    const bool has_view = exists && c < C;
    const uint32_t slots = has_view && !overflow ? state.num_slots[index] : 0;
    const EntrySum sum = sum_slots(scratch.partial, slots ? state.first_slot[index] : 0, slots);
    if (first_view == 0 && c < C)
      cameras[view_of_block] = load_camera(params, c);
    __syncthreads();
    for (int i = 0; i < color_values; ++i)
      color_parts[i * threads + t] = 0.0f;
    Vec3<float> v_offset = {};
    if (slots) {
      const Camera<double> &camera = cameras[view_of_block];
      const Vec3<double> offset = load_mean(params, n) - view_position(params, camera, c);
      const DeviceGaussian &g = state.projected[index];
      const float color[3] = {g.red, g.green, g.blue};
      v_offset =
          view_color_vjp(sh_degree, colors, Vec3<float>{float(offset.x), float(offset.y), float(offset.z)},
                         color, Vec3<float>{float(sum.values[6]), float(sum.values[7]), float(sum.values[8])},
                         [&](int i, float value) { color_parts[i * threads + t] = value; });
    }
    __syncwarp(); // no need; but colour and shape, one after the other, fit into the registers
    Mat3<double> v_rotation = {};
    Vec3<double> v_translation = {};
    Vec2<double> v_mean2d = {};
    if (slots) {
      const double *s = sum.values;
      const Camera<double> &camera = cameras[view_of_block];
      const GaussianShape shape = load_shape(params, n);
      const ViewedGaussian view = view_gaussian(params, camera, shape, n);
      const FootprintGradient<double> v =
          footprint_vjp(view.footprint, load_opacity(params, n), load_dilation(params),
                        {s[0], s[1], s[2], s[3], s[4], s[5]});
      const Vec2<double> v_projected = params.means2d ? Vec2<double>{} : v.v_mean;
      const ProjectionGradient<double> p = project_vjp(camera, shape.mean, shape.root, view.projection,
                                                       v_projected, s[9], v.v_xx, v.v_xy, v.v_yy);
      v_mean2d = v.v_mean;
      const Vec3<double> v_direction = {v_offset.x, v_offset.y, v_offset.z};
      const Vec3<double> v_mean = p.v_mean + v_direction;
      const double values[kShapeValues] = {
          v_mean.x,          v_mean.y,          v_mean.z,          p.v_root.row[0].x, p.v_root.row[0].y,
          p.v_root.row[0].z, p.v_root.row[1].x, p.v_root.row[1].y, p.v_root.row[1].z, p.v_root.row[2].x,
          p.v_root.row[2].y, p.v_root.row[2].z, v.v_opacity};
      for (int i = 0; i < kShapeValues; ++i)
        shape_parts[i * threads + t] += values[i];
      if (wants_cameras) { // the offset is mean + Rᵀ t
        const Vec3<double> v_position = params.positions ? Vec3<double>{} : v_direction;
        v_rotation = p.v_rotation;
        add_outer(v_rotation, camera.translation, v_position);
        v_translation = p.v_translation + multiply(camera.rotation, v_position);
      }
    }
    if (has_view && gradients.means2d) {
      gradients.means2d[2 * index] = float(v_mean2d.x);
      gradients.means2d[2 * index + 1] = float(v_mean2d.y);
    }
    if (wants_cameras) {
      const int lanes = per_view < kWarp ? per_view : kWarp;
      DDPO3D_SHARED(double[threads / kFewestLanes * kCameraGradients], parts);
      const double values[kCameraGradients] = {v_rotation.row[0].x, v_rotation.row[0].y, v_rotation.row[0].z,
                                               v_rotation.row[1].x, v_rotation.row[1].y, v_rotation.row[1].z,
                                               v_rotation.row[2].x, v_rotation.row[2].y, v_rotation.row[2].z,
                                               v_translation.x,     v_translation.y,     v_translation.z};
      for (int i = 0; i < kCameraGradients; ++i) {
        const double part = warp_sum(values[i], lanes);
        if (t % lanes == 0)
          parts[t / lanes * kCameraGradients + i] = part;
      }
      __syncthreads();
      const int view = t / kCameraGradients, value = t % kCameraGradients;
      if (view < views && first + view < C) {
        double total = 0.0;
        for (int w = 0; w < per_view / lanes; ++w)
          total += parts[(view * (per_view / lanes) + w) * kCameraGradients + value];
        scratch.cameras[(int64_t(blockIdx.x) * C + first + view) * kCameraGradients + value] = total;
      }
    }
    __syncthreads();
    if (v_colors)
      for (int i = view_of_block; i < color_values; i += views) { // the views share a Gaussian's numbers
        float total = first ? v_colors[i] : 0.0f;
        for (int w = 0; w < views; ++w)
          total += color_parts[i * threads + w * per_view + first_view];
        v_colors[i] = total;
      }
    __syncthreads();
  }
  __syncthreads(); // where there is no camera
  if (v_colors)
    for (int64_t i = (C ? color_values : 0) + view_of_block; i < params.color_stride; i += views)
      v_colors[i] = 0.0f;
  if (!exists || view_of_block)
    return;

  double totals[kShapeValues] = {};
  for (int w = 0; w < views; ++w)
    for (int i = 0; i < kShapeValues; ++i)
      totals[i] += shape_parts[i * threads + w * per_view + first_view];
  Mat3<double> v_root;
  for (int i = 0; i < 3; ++i)
    v_root.row[i] = {totals[3 + 3 * i], totals[4 + 3 * i], totals[5 + 3 * i]};
  Vec3<double> v_scale = {};
  Quat<double> v_quat = {};
  bool drawn = false;
  for (int64_t c = 0; c < C && !overflow; ++c)
    drawn = drawn || state.num_slots[c * N + n];
  if (drawn) {
    const GaussianShape shape = load_shape(params, n);
    Mat3<double> v_rotation;
    covariance_root_vjp(shape.rotation, shape.scale, v_root, v_rotation, v_scale);
    v_quat = quat_vjp(params, shape, v_rotation);
  }
  if (gradients.means) {
    gradients.means[3 * n] = float(totals[0]);
    gradients.means[3 * n + 1] = float(totals[1]);
    gradients.means[3 * n + 2] = float(totals[2]);
  }
  if (gradients.quats) {
    gradients.quats[4 * n] = float(v_quat.w);
    gradients.quats[4 * n + 1] = float(v_quat.x);
    gradients.quats[4 * n + 2] = float(v_quat.y);
    gradients.quats[4 * n + 3] = float(v_quat.z);
  }
  if (gradients.scales) {
    v_scale = scales_vjp(params, n, v_scale);
    gradients.scales[3 * n] = float(v_scale.x);
    gradients.scales[3 * n + 1] = float(v_scale.y);
    gradients.scales[3 * n + 2] = float(v_scale.z);
  }
  if (gradients.opacities)
    gradients.opacities[n] = float(opacity_vjp(params, n, totals[12], opacity_penalty));
}

// The tiles' and blocks' parts of the cameras' and backgrounds' gradients: a block is a camera.
__global__ void __launch_bounds__(kSumThreads)
    cameras_vjp_kernel(RasterizeParams params, DeviceState state, RasterizeGradients gradients,
                       DeviceScratch scratch, int64_t gaussian_blocks) {
  await_previous_kernels();
  constexpr int warps = kSumThreads / kWarp;
  DDPO3D_SHARED(double[warps], parts);
  const int64_t c = blockIdx.x, C = params.num_cameras;
  const bool overflow = state.counters->overflow;
  const int cameras = gradients.viewmats ? kCameraGradients : 0;
  for (int i = 0; i < cameras + (gradients.backgrounds ? 3 : 0); ++i) {
    double sum = 0.0;
    if (i < cameras)
      for (int64_t b = threadIdx.x; b < gaussian_blocks; b += kSumThreads)
        sum += scratch.cameras[(b * C + c) * kCameraGradients + i];
    else if (!overflow)
      for (int64_t tile = threadIdx.x; tile < state.tiles; tile += kSumThreads)
        sum += scratch.backgrounds[3 * (c * state.tiles + tile) + i - cameras];
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0)
      parts[threadIdx.x / kWarp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      double total = 0.0;
      for (int w = 0; w < warps; ++w)
        total += parts[w];
      if (i >= cameras)
        gradients.backgrounds[3 * c + i - cameras] = float(total);
      else if (i < 9)
        gradients.viewmats[16 * c + 4 * (i / 3) + i % 3] = float(total);
      else
        gradients.viewmats[16 * c + 4 * (i - 9) + 3] = float(total);
    }
    __syncthreads();
  }
  if (gradients.viewmats && threadIdx.x < 4)
    gradients.viewmats[16 * c + 12 + threadIdx.x] = 0.0f;
}

template <int sh_degree, class... Arguments>
void launch_degree(bool wants_cameras, dim3 grid, cudaStream_t stream, const Arguments &...arguments) {
  launch_early("rasterize gaussians vjp",
               wants_cameras ? gaussians_vjp_kernel<sh_degree, true> : gaussians_vjp_kernel<sh_degree, false>,
               grid, dim3(kGradientThreads), 0, stream, arguments...);
}

} // namespace

void launch_gaussians_vjp(const RasterizeParams &params, float opacity_penalty,
                          const RasterizeGradients &gradients, const DeviceState &state,
                          const DeviceScratch &scratch, cudaStream_t stream) {
  const int views = gradient_views(params);
  const int64_t blocks = gradient_blocks(params);
  const dim3 grid{uint32_t(blocks)};
  const bool wants_cameras = gradients.viewmats != nullptr;
  if (gradients.means2d_abs) {
    const int64_t of_views = params.num_cameras * params.num_gaussians;
    launch_early("rasterize absolute vjp", absolute_vjp_kernel,
                 dim3(uint32_t(blocks_for(of_views, kSumThreads))), dim3(kSumThreads), 0, stream, state,
                 scratch, gradients.means2d_abs, of_views);
  }
  if (params.covariances2d) {
    launch_early("rasterize given vjp", given_vjp_kernel,
                 dim3(uint32_t(blocks_for(params.num_gaussians, kGradientThreads))), dim3(kGradientThreads),
                 0, stream, params, state, opacity_penalty, gradients, scratch);
    if (gradients.backgrounds)
      launch_early("rasterize cameras vjp", cameras_vjp_kernel, dim3(uint32_t(params.num_cameras)),
                   dim3(kSumThreads), 0, stream, params, state, gradients, scratch, blocks);
    return;
  }
  switch (params.sh_degree) {
  case 0:
    launch_degree<0>(wants_cameras, grid, stream, params, state, opacity_penalty, gradients, scratch, views);
    break;
  case 1:
    launch_degree<1>(wants_cameras, grid, stream, params, state, opacity_penalty, gradients, scratch, views);
    break;
  case 2:
    launch_degree<2>(wants_cameras, grid, stream, params, state, opacity_penalty, gradients, scratch, views);
    break;
  case 3:
    launch_degree<3>(wants_cameras, grid, stream, params, state, opacity_penalty, gradients, scratch, views);
    break;
  default:
    launch_degree<-1>(wants_cameras, grid, stream, params, state, opacity_penalty, gradients, scratch, views);
  }
  if (wants_cameras || gradients.backgrounds)
    launch_early("rasterize cameras vjp", cameras_vjp_kernel, dim3(uint32_t(params.num_cameras)),
                 dim3(kSumThreads), 0, stream, params, state, gradients, scratch, blocks);
}

} // namespace ddpo3d_fast
