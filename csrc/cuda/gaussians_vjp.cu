// Stage 6 of the CUDA rasterizer: the tiles' partial gradients to the Gaussians', cameras' and backgrounds'.
// A thread is a Gaussian; it sums its slots in their order, camera after camera, in double precision.
#include "blend_vjp.cuh"
#include "launch.cuh"
#include "maths/view.h"

namespace ddpo3d_fast {
namespace {

constexpr int kSumThreads = 256;

struct EntrySum {
  Moments<double> moments;
  Vec3<double> color;
  double depth;
};

__device__ inline EntrySum sum_entries(const DeviceEntryGradient *partial, uint32_t count) {
  EntrySum s = {};
  for (uint32_t k = 0; k < count; ++k) {
    const float4 *quads = reinterpret_cast<const float4 *>(partial + k);
    const float4 a = quads[0], b = quads[1], c = quads[2];
    s.moments.v += a.x;
    s.moments.u1 += a.y;
    s.moments.u2 += a.z;
    s.moments.u11 += a.w;
    s.moments.u12 += b.x;
    s.moments.u22 += b.y;
    s.color = s.color + Vec3<double>{b.z, b.w, c.x};
    s.depth += c.y;
  }
  return s;
}

// Adds a warp's values up in fixed order; lane 0 has the sum.
__device__ inline double warp_sum(double value) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    value += __shfl_down_sync(kAllLanes, value, step);
  return value;
}

template <int sh_degree, bool wants_cameras>
__global__ void __launch_bounds__(kGradientThreads)
    gaussians_vjp_kernel(RasterizeParams params, DeviceState state, Penalties penalties,
                         RasterizeGradients gradients, DeviceScratch scratch) {
  constexpr int warps = kGradientThreads / kWarp;
  const int64_t C = params.num_cameras, N = params.num_gaussians;
  const int64_t n = int64_t(blockIdx.x) * kGradientThreads + threadIdx.x;
  const bool exists = n < N, overflow = state.counters->overflow;
  const float *colors = params.colors + params.color_stride * n;
  float *const v_colors = gradients.colors ? gradients.colors + params.color_stride * n : nullptr;

  Vec3<double> v_mean = {};
  Mat3<double> v_root = {};
  double v_opacity = 0.0;
  bool drawn = false;
  for (int64_t c = 0; c < C; ++c) {
    const int64_t index = c * N + n;
    const uint32_t slots = exists && !overflow ? state.num_slots[index] : 0;
    Mat3<double> v_rotation = {};
    Vec3<double> v_translation = {};
    Vec2<double> v_mean2d = {};
    if (slots) {
      const Camera<double> camera = load_camera(params, c);
      const GaussianShape shape = load_shape(params, n);
      const EntrySum sum = sum_entries(scratch.partial + state.first_slot[index], slots);
      const ViewedGaussian view = view_gaussian(params, camera, shape, n);
      const FootprintGradient<double> v =
          footprint_vjp(view.footprint, load_opacity(params, n), params.antialiased, sum.moments);
      const ProjectionGradient<double> p = project_vjp(camera, shape.mean, shape.root, view.projection,
                                                       v.v_mean, sum.depth, v.v_xx, v.v_xy, v.v_yy);
      v_mean2d = v.v_mean;
      v_opacity += v.v_opacity;
      v_mean = v_mean + p.v_mean;
      for (int i = 0; i < 3; ++i)
        v_root.row[i] = v_root.row[i] + p.v_root.row[i];
      const DeviceGaussian &g = state.projected[index];
      const float color[3] = {g.red, g.green, g.blue};
      const Vec3<double> offset = shape.mean - camera_position(camera);
      const Vec3<float> v_offset = view_color_vjp(
          sh_degree, colors, Vec3<float>{float(offset.x), float(offset.y), float(offset.z)}, color,
          Vec3<float>{float(sum.color.x), float(sum.color.y), float(sum.color.z)}, [&](int i, float value) {
            if (v_colors)
              v_colors[i] = drawn ? v_colors[i] + value : value;
          });
      const Vec3<double> v_direction = {v_offset.x, v_offset.y, v_offset.z};
      v_mean = v_mean + v_direction;
      if (wants_cameras) { // the offset is mean + Rᵀ t
        v_rotation = p.v_rotation;
        add_outer(v_rotation, camera.translation, v_direction);
        v_translation = p.v_translation + multiply(camera.rotation, v_direction);
      }
      drawn = true;
    }
    if (exists && gradients.means2d) {
      gradients.means2d[2 * index] = float(v_mean2d.x);
      gradients.means2d[2 * index + 1] = float(v_mean2d.y);
    }
    if (wants_cameras) {
      DDPO3D_SHARED(double[warps * kCameraGradients], parts);
      const double values[kCameraGradients] = {v_rotation.row[0].x, v_rotation.row[0].y, v_rotation.row[0].z,
                                               v_rotation.row[1].x, v_rotation.row[1].y, v_rotation.row[1].z,
                                               v_rotation.row[2].x, v_rotation.row[2].y, v_rotation.row[2].z,
                                               v_translation.x,     v_translation.y,     v_translation.z};
      for (int i = 0; i < kCameraGradients; ++i) {
        const double sum = warp_sum(values[i]);
        if (threadIdx.x % kWarp == 0)
          parts[threadIdx.x / kWarp * kCameraGradients + i] = sum;
      }
      __syncthreads();
      if (threadIdx.x < kCameraGradients) {
        double sum = 0.0;
        for (int w = 0; w < warps; ++w)
          sum += parts[w * kCameraGradients + threadIdx.x];
        scratch.cameras[(int64_t(blockIdx.x) * C + c) * kCameraGradients + threadIdx.x] = sum;
      }
      __syncthreads();
    }
  }
  if (!exists)
    return;

  Vec3<double> v_scale = {};
  Quat<double> v_quat = {};
  if (drawn) {
    const GaussianShape shape = load_shape(params, n);
    Mat3<double> v_rotation;
    covariance_root_vjp(shape.rotation, shape.scale, v_root, v_rotation, v_scale);
    v_quat = rotation_matrix_vjp(shape.quat, shape.inverse_norm, v_rotation);
  }
  if (gradients.means) {
    gradients.means[3 * n] = float(v_mean.x);
    gradients.means[3 * n + 1] = float(v_mean.y);
    gradients.means[3 * n + 2] = float(v_mean.z);
  }
  if (gradients.quats) {
    gradients.quats[4 * n] = float(v_quat.w);
    gradients.quats[4 * n + 1] = float(v_quat.x);
    gradients.quats[4 * n + 2] = float(v_quat.y);
    gradients.quats[4 * n + 3] = float(v_quat.z);
  }
  if (gradients.scales) {
    v_scale = scales_vjp(params, n, v_scale, penalties.scale);
    gradients.scales[3 * n] = float(v_scale.x);
    gradients.scales[3 * n + 1] = float(v_scale.y);
    gradients.scales[3 * n + 2] = float(v_scale.z);
  }
  if (gradients.opacities)
    gradients.opacities[n] = float(opacity_vjp(params, n, v_opacity, penalties.opacity));
  if (v_colors)
    for (int64_t i = drawn ? colors_used(params) : 0; i < params.color_stride; ++i)
      v_colors[i] = 0.0f;
}

// The tiles' and blocks' parts of the cameras' and backgrounds' gradients: a block is a camera.
__global__ void __launch_bounds__(kSumThreads)
    cameras_vjp_kernel(RasterizeParams params, DeviceState state, RasterizeGradients gradients,
                       DeviceScratch scratch, int64_t gaussian_blocks) {
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
  launch("rasterize gaussians vjp",
         wants_cameras ? gaussians_vjp_kernel<sh_degree, true> : gaussians_vjp_kernel<sh_degree, false>, grid,
         dim3(kGradientThreads), 0, stream, arguments...);
}

} // namespace

void launch_gaussians_vjp(const RasterizeParams &params, const Penalties &penalties,
                          const RasterizeGradients &gradients, const DeviceState &state,
                          const DeviceScratch &scratch, cudaStream_t stream) {
  const int64_t blocks = blocks_for(params.num_gaussians, kGradientThreads);
  const dim3 grid{uint32_t(blocks)};
  const bool wants_cameras = gradients.viewmats != nullptr;
  switch (params.sh_degree) {
  case 0:
    launch_degree<0>(wants_cameras, grid, stream, params, state, penalties, gradients, scratch);
    break;
  case 1:
    launch_degree<1>(wants_cameras, grid, stream, params, state, penalties, gradients, scratch);
    break;
  case 2:
    launch_degree<2>(wants_cameras, grid, stream, params, state, penalties, gradients, scratch);
    break;
  case 3:
    launch_degree<3>(wants_cameras, grid, stream, params, state, penalties, gradients, scratch);
    break;
  default:
    launch_degree<-1>(wants_cameras, grid, stream, params, state, penalties, gradients, scratch);
  }
  if (wants_cameras || gradients.backgrounds)
    launch("rasterize cameras vjp", cameras_vjp_kernel, dim3(uint32_t(params.num_cameras)), dim3(kSumThreads),
           0, stream, params, state, gradients, scratch, blocks);
}

} // namespace ddpo3d_fast
