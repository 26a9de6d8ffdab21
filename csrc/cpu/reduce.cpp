// Last stage of the CPU rasterizer's backward pass: the tiles' partial gradients to the Gaussians' and the
// cameras'.
//
// A Gaussian's partial gradients lie side by side and are summed in their order, in double precision; the
// view matrices' gradients are summed over fixed pieces of Gaussians. So the bits do not depend on the
// threads.
#include <algorithm>

#include "maths/view.h"
#include "parallel.h"
#include "rasterizer_state.h"

namespace ddpo3d_fast {
namespace {

struct EntrySum {
  Moments<double> moments;
  Vec3<double> color;
  double depth;
};

EntrySum sum_entries(const EntryGradient *partial, uint32_t count) {
  EntrySum s = {};
  for (uint32_t k = 0; k < count; ++k) {
    const EntryGradient &g = partial[k];
    s.moments.v += g.v;
    s.moments.u1 += g.u1;
    s.moments.u2 += g.u2;
    s.moments.u11 += g.u11;
    s.moments.u12 += g.u12;
    s.moments.u22 += g.u22;
    s.color = s.color + Vec3<double>{g.red, g.green, g.blue};
    s.depth += g.depth;
  }
  return s;
}

template <int count> void store(float *target, int64_t n, const double (&values)[count]) {
  if (target)
    for (int i = 0; i < count; ++i)
      target[count * n + i] = float(values[i]);
}

void sum_absolute(const RasterizeParams &params, const RasterizeState::Impl &state,
                  const EntryAbsolute *absolute, float *means2d_abs) {
  const int64_t N = params.num_gaussians;
  parallel_for(params.num_cameras * state.pieces, [&](int64_t task) {
    const int64_t c = task / state.pieces, begin = task % state.pieces * kProjectionGrain;
    for (int64_t n = begin; n < std::min(N, begin + kProjectionGrain); ++n) {
      const ProjectedGaussian &g = state.projected[c * N + n];
      const EntryAbsolute *of_gaussian = absolute + state.piece_slots[task] + g.first_entry;
      double x = 0, y = 0;
      for (uint32_t k = 0; k < g.num_entries; ++k) {
        x += of_gaussian[k].x;
        y += of_gaussian[k].y;
      }
      store(means2d_abs, c * N + n, {x, y});
    }
  });
}

// Where footprints were given, not projected: their own gradients, and the opacity's and colour's.
void reduce_given(const RasterizeParams &params, const RasterizeState::Impl &state,
                  const EntryGradient *partial, float opacity_penalty, const RasterizeGradients &gradients) {
  const int64_t C = params.num_cameras, N = params.num_gaussians;
  parallel_for(state.pieces, [&](int64_t piece) {
    const int64_t begin = piece * kProjectionGrain;
    for (int64_t n = begin; n < std::min(N, begin + kProjectionGrain); ++n) {
      double v_opacity = 0;
      Vec3<double> v_color = {};
      for (int64_t c = 0; c < C; ++c) {
        const int64_t index = c * N + n;
        const ProjectedGaussian &g = state.projected[index];
        EntrySum sum = {};
        FootprintGradient<double> v = {};
        if (g.num_entries) {
          sum = sum_entries(partial + state.piece_slots[c * state.pieces + piece] + g.first_entry,
                            g.num_entries);
          v = footprint_vjp(given_footprint(params, index, n), load_opacity(params, n), load_dilation(params),
                            sum.moments);
        }
        v_opacity += v.v_opacity;
        v_color = v_color + sum.color;
        store(gradients.means2d, index, {v.v_mean.x, v.v_mean.y});
        store(gradients.covariances2d, index, {v.v_xx, v.v_xy, v.v_yy});
        store(gradients.depths, index, {sum.depth});
      }
      store(gradients.opacities, n, {opacity_vjp(params, n, v_opacity, opacity_penalty)});
      store(gradients.colors, n, {v_color.x, v_color.y, v_color.z});
    }
  });
}

struct CameraGradient {
  Mat3<double> v_rotation;
  Vec3<double> v_translation;
};

} // namespace

void reduce_gaussians(const RasterizeParams &params, const RasterizeState::Impl &state,
                      const EntryGradient *partial, const EntryAbsolute *absolute, float opacity_penalty,
                      const RasterizeGradients &gradients) {
  const int64_t C = params.num_cameras, N = params.num_gaussians;
  if (gradients.means2d_abs)
    sum_absolute(params, state, absolute, gradients.means2d_abs);
  if (params.covariances2d)
    return reduce_given(params, state, partial, opacity_penalty, gradients);
  std::vector<CameraGradient> v_cameras(gradients.viewmats ? state.pieces * C : 0, CameraGradient{});
  std::vector<Camera<double>> cameras(C);
  for (int64_t c = 0; c < C; ++c)
    cameras[c] = load_camera(params, c);

  parallel_for(state.pieces, [&](int64_t piece) {
    const int64_t begin = piece * kProjectionGrain;
    for (int64_t n = begin; n < std::min(N, begin + kProjectionGrain); ++n) {
      Vec3<double> v_mean = {};
      Mat3<double> v_root = {};
      double v_opacity = 0, v_colors[48] = {};
      GaussianShape shape;
      bool loaded = false;
      for (int64_t c = 0; c < C; ++c) {
        const ProjectedGaussian &g = state.projected[c * N + n];
        if (!g.num_entries) {
          store(gradients.means2d, c * N + n, {0.0, 0.0});
          continue;
        }
        if (!loaded)
          shape = load_shape(params, n);
        loaded = true;
        const EntrySum sum =
            sum_entries(partial + state.piece_slots[c * state.pieces + piece] + g.first_entry, g.num_entries);
        const ViewedGaussian view = view_gaussian(params, cameras[c], shape, n);
        const FootprintGradient<double> v =
            footprint_vjp(view.footprint, load_opacity(params, n), load_dilation(params), sum.moments);
        const Vec2<double> v_projected = params.means2d ? Vec2<double>{} : v.v_mean;
        const ProjectionGradient<double> p = project_vjp(cameras[c], shape.mean, shape.root, view.projection,
                                                         v_projected, sum.depth, v.v_xx, v.v_xy, v.v_yy);
        CameraGradient v_camera = {p.v_rotation, p.v_translation};
        v_opacity += v.v_opacity;
        v_mean = v_mean + p.v_mean;
        for (int i = 0; i < 3; ++i)
          v_root.row[i] = v_root.row[i] + p.v_root.row[i];
        const Vec3<double> v_offset =
            view_color_vjp(params.sh_degree, params.colors + params.color_stride * n,
                           shape.mean - view_position(params, cameras[c], c), g.color, sum.color,
                           [&](int i, double v_value) { v_colors[i] += v_value; });
        v_mean = v_mean + v_offset;
        if (!params.positions) { // the offset is mean + Rᵀ t
          add_outer(v_camera.v_rotation, cameras[c].translation, v_offset);
          v_camera.v_translation = v_camera.v_translation + multiply(cameras[c].rotation, v_offset);
        }
        store(gradients.means2d, c * N + n, {v.v_mean.x, v.v_mean.y});
        if (gradients.viewmats) {
          CameraGradient &total = v_cameras[piece * C + c];
          for (int i = 0; i < 3; ++i)
            total.v_rotation.row[i] = total.v_rotation.row[i] + v_camera.v_rotation.row[i];
          total.v_translation = total.v_translation + v_camera.v_translation;
        }
      }

      Vec3<double> v_scale = {};
      Quat<double> v_quat = {};
      if (loaded) {
        Mat3<double> v_rotation;
        covariance_root_vjp(shape.rotation, shape.scale, v_root, v_rotation, v_scale);
        v_quat = quat_vjp(params, shape, v_rotation);
      }
      store(gradients.means, n, {v_mean.x, v_mean.y, v_mean.z});
      store(gradients.quats, n, {v_quat.w, v_quat.x, v_quat.y, v_quat.z});
      v_scale = scales_vjp(params, n, v_scale);
      store(gradients.scales, n, {v_scale.x, v_scale.y, v_scale.z});
      store(gradients.opacities, n, {opacity_vjp(params, n, v_opacity, opacity_penalty)});
      if (gradients.colors) {
        const int64_t used = colors_used(params);
        for (int64_t i = 0; i < params.color_stride; ++i)
          gradients.colors[params.color_stride * n + i] = i < used ? float(v_colors[i]) : 0.0f;
      }
    }
  });

  for (int64_t c = 0; gradients.viewmats && c < C; ++c) {
    double v[16] = {};
    for (int64_t piece = 0; piece < state.pieces; ++piece) {
      const CameraGradient &g = v_cameras[piece * C + c];
      const double translation[3] = {g.v_translation.x, g.v_translation.y, g.v_translation.z};
      for (int i = 0; i < 3; ++i) {
        v[4 * i] += g.v_rotation.row[i].x;
        v[4 * i + 1] += g.v_rotation.row[i].y;
        v[4 * i + 2] += g.v_rotation.row[i].z;
        v[4 * i + 3] += translation[i];
      }
    }
    store(gradients.viewmats, c, v);
  }
}

} // namespace ddpo3d_fast
