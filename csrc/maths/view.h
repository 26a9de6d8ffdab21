// One Gaussian before one camera, in double precision: what the projection and its backward pass both need.
// It costs little beside blending, and the images and gradients then differ from the exact ones by the
// rounding of blending alone.
#pragma once

#include <cmath>

#include "blend.h"
#include "camera.h"
#include "ddpo3d_fast/rasterizer.h"
#include "ellipse.h"
#include "gaussian.h"
#include "sh.h"

namespace ddpo3d_fast {

template <class T> DDPO3D_HD bool is_finite(T value) { return value - value == T(0); }

DDPO3D_HD Camera<double> load_camera(const RasterizeParams &params, int64_t camera) {
  const float *v = params.viewmats + 16 * camera, *k = params.intrinsics + 9 * camera;
  return {{{{v[0], v[1], v[2]}, {v[4], v[5], v[6]}, {v[8], v[9], v[10]}}},
          {v[3], v[7], v[11]},
          k[0],
          k[4],
          k[2],
          k[5],
          double(params.width),
          double(params.height)};
}

// Whether a camera that can see at all has this depth between its planes.
DDPO3D_HD bool sees_depth(const RasterizeParams &params, const Camera<double> &camera, double z) {
  return z > params.near && z < params.far && camera.fx > 0 && camera.fy > 0;
}

DDPO3D_HD Vec3<double> load_mean(const RasterizeParams &params, int64_t n) {
  const float *m = params.means + 3 * n;
  return {m[0], m[1], m[2]};
}

constexpr double kLogitCut = -5.537334267018537; // the logit of kAlphaCut, -ln 254
constexpr double kLogitZero = -104.0;            // below it an opacity is 0 in single precision

// Whether the opacity alone lets Gaussian n be seen. Asked first: rows of no opacity, which only fill up an
// array, then cost no more than this number.
DDPO3D_HD bool may_show(const RasterizeParams &params, int64_t n) {
  return params.opacities[n] > (params.activated ? kAlphaCut : kLogitCut);
}

// Whether Gaussian n has no opacity at all. It has no part in the penalty then.
DDPO3D_HD bool is_absent(const RasterizeParams &params, int64_t n) {
  return !(params.opacities[n] > (params.activated ? 0.0 : kLogitZero));
}

DDPO3D_HD double load_opacity(const RasterizeParams &params, int64_t n) {
  const double o = params.opacities[n];
  return params.activated ? o : 1.0 / (1.0 + std::exp(-o));
}

DDPO3D_HD Vec3<double> load_scale(const RasterizeParams &params, int64_t n) {
  const float *s = params.scales + 3 * n;
  const Vec3<double> scale = {s[0], s[1], s[2]};
  return params.activated ? scale : Vec3<double>{std::exp(scale.x), std::exp(scale.y), std::exp(scale.z)};
}

// From the gradient of the loss, for opacities without its penalty, to that of the number that was given;
// nothing for a number that is not finite.
DDPO3D_HD double opacity_vjp(const RasterizeParams &params, int64_t n, double v_opacity, float penalty) {
  if (is_absent(params, n))
    return 0.0;
  const double opacity = load_opacity(params, n);
  const double v = (v_opacity + penalty) * (params.activated ? 1.0 : opacity * (1.0 - opacity));
  return is_finite(v) && is_finite(opacity) ? v : 0.0;
}

DDPO3D_HD double scale_vjp(const RasterizeParams &params, double scale, double v_scale) {
  const double v = params.activated ? v_scale : v_scale * scale;
  return is_finite(v) && is_finite(scale) ? v : 0.0;
}

DDPO3D_HD Vec3<double> scales_vjp(const RasterizeParams &params, int64_t n, const Vec3<double> &v_scale) {
  if (is_absent(params, n))
    return {0.0, 0.0, 0.0};
  const Vec3<double> scale = load_scale(params, n);
  return {scale_vjp(params, scale.x, v_scale.x), scale_vjp(params, scale.y, v_scale.y),
          scale_vjp(params, scale.z, v_scale.z)};
}

struct GaussianShape {
  Vec3<double> mean, scale;
  Quat<double> quat; // unit, but for params.unit_quats
  double inverse_norm;
  Mat3<double> rotation, root;
};

DDPO3D_HD GaussianShape load_shape(const RasterizeParams &params, int64_t n) {
  GaussianShape out;
  const float *q = params.quats + 4 * n;
  out.mean = load_mean(params, n);
  out.scale = load_scale(params, n);
  out.quat = {q[0], q[1], q[2], q[3]};
  if (params.unit_quats)
    out.quat = normalized(out.quat, out.inverse_norm);
  out.rotation = rotation_matrix(out.quat);
  out.root = covariance_root(out.rotation, out.scale);
  return out;
}

// VJP of load_shape's rotation with respect to the quaternion as it was given.
DDPO3D_HD Quat<double> quat_vjp(const RasterizeParams &params, const GaussianShape &shape,
                                const Mat3<double> &v_rotation) {
  return params.unit_quats ? rotation_matrix_vjp(shape.quat, shape.inverse_norm, v_rotation)
                           : rotation_matrix_vjp(shape.quat, v_rotation);
}

DDPO3D_HD bool all_finite(const float *values, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i)
    finite = is_finite(values[i]) && finite; // in this order, so that no load waits for another
  return finite;
}

// Floats of a Gaussian's colours that are read.
DDPO3D_HD int64_t colors_used(const RasterizeParams &params) {
  return params.sh_degree < 0 ? 3 : 3 * sh_count(params.sh_degree);
}

// Whether a number that is given means something: where it is a logarithm or a logit, an infinite one may be
// the limit that it stands for.
DDPO3D_HD bool is_usable_opacity(const RasterizeParams &params, float opacity) {
  return params.activated ? is_finite(opacity) : opacity == opacity; // a logit of inf: 1, of -inf: 0
}

DDPO3D_HD bool is_usable_scale(const RasterizeParams &params, float scale) {
  return is_finite(scale) || (!params.activated && scale < 0.0f); // a logarithm of -inf: no thickness
}

// Whether Gaussian n can be drawn at all: its numbers mean something, its quaternion is not zero.
DDPO3D_HD bool is_usable(const RasterizeParams &params, int64_t n) {
  const float *quat = params.quats + 4 * n, *scale = params.scales + 3 * n;
  const Quat<float> q = {quat[0], quat[1], quat[2], quat[3]};
  const Vec3<float> s = {scale[0], scale[1], scale[2]};
  const bool mean = all_finite(params.means + 3 * n, 3), rotation = all_finite(quat, 4);
  const bool color = all_finite(params.colors + params.color_stride * n, colors_used(params));
  return mean && rotation && color && is_usable_scale(params, s.x) && is_usable_scale(params, s.y) &&
         is_usable_scale(params, s.z) && is_usable_opacity(params, params.opacities[n]) &&
         (q.w != 0 || q.x != 0 || q.y != 0 || q.z != 0 || !params.unit_quats);
}

// Where a camera's spherical harmonics are seen from.
DDPO3D_HD Vec3<double> view_position(const RasterizeParams &params, const Camera<double> &camera, int64_t c) {
  if (!params.positions)
    return camera_position(camera);
  const float *p = params.positions + 3 * c;
  return {p[0], p[1], p[2]};
}

// Where the mean lies on the image, for Gaussian and camera `index` in [C, N].
DDPO3D_HD Vec2<double> image_mean(const RasterizeParams &params, int64_t index,
                                  const Vec2<double> &projected) {
  Vec2<double> mean = projected;
  if (params.means2d)
    mean = {params.means2d[2 * index], params.means2d[2 * index + 1]};
  if (params.means2d_offsets)
    mean = {mean.x + params.means2d_offsets[2 * index], mean.y + params.means2d_offsets[2 * index + 1]};
  return mean;
}

DDPO3D_HD Dilation<double> load_dilation(const RasterizeParams &params) {
  return {params.eps2d, params.antialiased, params.factor_min};
}

struct ViewedGaussian {
  Projection<double> projection;
  Footprint<double> footprint;
};

DDPO3D_HD ViewedGaussian view_gaussian(const RasterizeParams &params, const Camera<double> &camera,
                                       const GaussianShape &shape, int64_t n) {
  ViewedGaussian out;
  out.projection = project(camera, shape.mean, shape.root);
  const Projection<double> &p = out.projection;
  out.footprint = footprint(p.xx, p.xy, p.yy, p.det, load_opacity(params, n), load_dilation(params));
  return out;
}

// The footprint where the covariance on the image was given.
DDPO3D_HD Footprint<double> given_footprint(const RasterizeParams &params, int64_t index, int64_t n) {
  const float *covariance = params.covariances2d + 3 * index;
  const double xx = covariance[0], xy = covariance[1], yy = covariance[2];
  return footprint(xx, xy, yy, xx * yy - xy * xy, load_opacity(params, n), load_dilation(params));
}

// Whether its numbers mean something, and it lies between the planes.
DDPO3D_HD bool is_given(const RasterizeParams &params, int64_t index, int64_t n) {
  const float *covariance = params.covariances2d + 3 * index;
  const double z = params.depths[index];
  return z > params.near && z < params.far && all_finite(covariance, 3) &&
         all_finite(params.colors + params.color_stride * n, 3) &&
         is_usable_opacity(params, params.opacities[n]) && covariance[0] + params.eps2d > 0 &&
         covariance[2] + params.eps2d > 0;
}

// Whether the footprint at (x, y) can be drawn: above the cut somewhere, and without an overflow.
DDPO3D_HD bool is_drawable(const Footprint<double> &f, double x, double y) {
  return f.reach > 0 && is_finite(x) && is_finite(y) && is_finite(f.dilated_det) && is_finite(f.xx) &&
         is_finite(f.yy) && f.dilated_det > 0;
}

DDPO3D_HD int32_t whole_pixels(double radius) {
  radius = std::ceil(radius);
  return int32_t(radius < 1073741824.0 ? radius : 1073741824.0); // never more, nor NaN
}

DDPO3D_HD int32_t screen_radius(const Footprint<double> &f) {
  return whole_pixels(std::sqrt(f.reach * (f.xx > f.yy ? f.xx : f.yy)));
}

// Half the side of the square that params.sigmas draws, 0 where it touches no tile of the image; whatever the
// opacity. Source: 3D Gaussian Splatting (Kerbl et al. 2023), appendix C; the longer axis is at least
// √0.1 px longer than the mean of both.
DDPO3D_HD int32_t square_radius(const RasterizeParams &params, const Footprint<double> &f, double x,
                                double y) {
  const double middle = 0.5 * (f.xx + f.yy), rest = middle * middle - f.dilated_det;
  const double longer = middle + std::sqrt(rest > 0.1 ? rest : 0.1);
  if (!(is_finite(x) && is_finite(y) && is_finite(longer)))
    return 0;
  const int32_t radius = whole_pixels(params.sigmas * std::sqrt(longer));
  const Range columns = within_square({0, int32_t(params.width) - 1}, x, radius);
  const Range rows = within_square({0, int32_t(params.height) - 1}, y, radius);
  return is_empty(columns) || is_empty(rows) ? 0 : radius;
}

struct BoxRadii {
  int32_t x, y; // pixels
};

// Half the sides of what can be drawn's bounding box; none where it does not touch the image, or where both
// are no longer than params.radius_clip. Source: StopThePop (Radl et al. 2024), section B.2.
DDPO3D_HD BoxRadii box_radii(const RasterizeParams &params, const Footprint<double> &f, double x, double y) {
  const BoxRadii radii = {whole_pixels(std::sqrt(f.reach * f.xx)), whole_pixels(std::sqrt(f.reach * f.yy))};
  const bool outside =
      x + radii.x <= 0 || x - radii.x >= params.width || y + radii.y <= 0 || y - radii.y >= params.height;
  const bool clipped = radii.x <= params.radius_clip && radii.y <= params.radius_clip;
  return outside || clipped ? BoxRadii{0, 0} : radii;
}

// The colour that a camera sees: plain, or spherical harmonics in the direction of `offset` (mean minus
// camera position), clamped at zero.
template <class T>
DDPO3D_HD void view_color(int sh_degree, const float *values, const Vec3<T> &offset, float *color) {
  if (sh_degree < 0) {
    for (int c = 0; c < 3; ++c)
      color[c] = values[c];
    return;
  }
  T basis[16], inverse_norm;
  sh_basis(sh_degree, normalized(offset, inverse_norm), basis);
  for (int c = 0; c < 3; ++c) {
    T sum = T(0.5);
    for (int k = 0; k < sh_count(sh_degree); ++k)
      sum += basis[k] * values[3 * k + c];
    color[c] = sum > T(0) ? float(sum) : 0.0f;
  }
}

// VJP of view_color: calls add(index, gradient) for every float of the colours that is read, and returns the
// offset's gradient. `color` is what view_color gave.
template <class T, class Add>
DDPO3D_HD Vec3<T> view_color_vjp(int sh_degree, const float *values, const Vec3<T> &offset,
                                 const float *color, const Vec3<T> &v_color, const Add &add) {
  if (sh_degree < 0) {
    add(0, v_color.x);
    add(1, v_color.y);
    add(2, v_color.z);
    return {T(0), T(0), T(0)};
  }
  T basis[16], v_basis[16], inverse_norm;
  const Vec3<T> direction = normalized(offset, inverse_norm);
  sh_basis(sh_degree, direction, basis);
  const T v[3] = {color[0] > 0 ? v_color.x : T(0), color[1] > 0 ? v_color.y : T(0),
                  color[2] > 0 ? v_color.z : T(0)}; // clamped at zero
  for (int k = 0; k < sh_count(sh_degree); ++k) {
    v_basis[k] = T(0);
    for (int c = 0; c < 3; ++c) {
      add(3 * k + c, basis[k] * v[c]);
      v_basis[k] += values[3 * k + c] * v[c];
    }
  }
  return normalized_vjp(direction, inverse_norm, sh_basis_vjp(sh_degree, direction, v_basis));
}

} // namespace ddpo3d_fast
