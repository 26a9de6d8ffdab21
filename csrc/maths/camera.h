// Pinhole camera: a Gaussian in the world to its mean, depth and covariance on the image, and the VJP.
// Source: EWA splatting (Zwicker et al. 2002), eq. 25-31; the camera looks along +z, x right, y down
// (OpenCV).
#pragma once

#include "vector.h"

namespace ddpo3d_fast {

template <class T> struct Camera {
  Mat3<T> rotation;    // world to camera
  Vec3<T> translation; // world to camera
  T fx, fy, cx, cy;    // pixels; pixel centres lie at +0.5
  T width, height;     // pixels
};

// The position of the camera, -Rᵀ t.
template <class T> DDPO3D_HD Vec3<T> camera_position(const Camera<T> &camera) {
  return T(-1) * multiply_transposed(camera.rotation, camera.translation);
}

template <class T> struct Projection {
  Vec3<T> point;                  // the mean in camera space; point.z is the depth
  Vec2<T> mean;                   // pixels
  T xx, xy, yy;                   // covariance on the image, px², before dilation
  T det;                          // its determinant
  T slope_x, slope_y;             // x/z and y/z as the Jacobian sees them: clamped to the widened frustum
  bool inside_x, inside_y;        // whether they were within it
  Vec3<T> jacobian_x, jacobian_y; // rows of J R (2x3)
  Vec3<T> spread_x, spread_y;     // rows of J R M (2x3): the covariance is their Gram matrix
};

// x/z is clamped to where the image ends plus 0.3 of its half-extent on either side: beyond, the affine
// approximation of the projection would smear a Gaussian over the whole image.
template <class T> DDPO3D_HD T clamp_slope(T slope, T center, T extent, T focal, bool &inside) {
  const T margin = T(0.15) * extent;
  const T low = -(center + margin) / focal, high = (extent - center + margin) / focal;
  inside = slope >= low && slope <= high;
  return slope < low ? low : slope > high ? high : slope;
}

// `root` is the covariance's root M (gaussian.h).
template <class T>
DDPO3D_HD Projection<T> project(const Camera<T> &camera, const Vec3<T> &mean, const Mat3<T> &root) {
  Projection<T> out;
  const Vec3<T> *r = camera.rotation.row;
  out.point = multiply(camera.rotation, mean) + camera.translation;
  const T inverse_z = T(1) / out.point.z, x = out.point.x * inverse_z, y = out.point.y * inverse_z;
  out.mean = {camera.fx * x + camera.cx, camera.fy * y + camera.cy};
  out.slope_x = clamp_slope(x, camera.cx, camera.width, camera.fx, out.inside_x);
  out.slope_y = clamp_slope(y, camera.cy, camera.height, camera.fy, out.inside_y);
  // J = [fx/z, 0, -fx x/z²; 0, fy/z, -fy y/z²]
  out.jacobian_x = (camera.fx * inverse_z) * (r[0] - out.slope_x * r[2]);
  out.jacobian_y = (camera.fy * inverse_z) * (r[1] - out.slope_y * r[2]);
  out.spread_x = multiply_transposed(root, out.jacobian_x);
  out.spread_y = multiply_transposed(root, out.jacobian_y);
  out.xx = dot(out.spread_x, out.spread_x);
  out.xy = dot(out.spread_x, out.spread_y);
  out.yy = dot(out.spread_y, out.spread_y);
  // The Gram determinant as a square: xx yy - xy² would lose all digits of a needle's.
  const Vec3<T> normal = cross(out.spread_x, out.spread_y);
  out.det = dot(normal, normal);
  return out;
}

template <class T> struct ProjectionGradient {
  Vec3<T> v_mean;
  Mat3<T> v_root;
  Mat3<T> v_rotation;    // of the camera
  Vec3<T> v_translation; // of the camera
};

// VJP of project: gradients of the image mean, depth and covariance (v_xy: of the one number both
// off-diagonals share).
template <class T>
DDPO3D_HD ProjectionGradient<T> project_vjp(const Camera<T> &camera, const Vec3<T> &mean, const Mat3<T> &root,
                                            const Projection<T> &p, const Vec2<T> &v_mean2d, T v_depth,
                                            T v_xx, T v_xy, T v_yy) {
  ProjectionGradient<T> out;
  const Vec3<T> *r = camera.rotation.row;
  const T inverse_z = T(1) / p.point.z;

  const Vec3<T> v_spread_x = (T(2) * v_xx) * p.spread_x + v_xy * p.spread_y;
  const Vec3<T> v_spread_y = (T(2) * v_yy) * p.spread_y + v_xy * p.spread_x;
  out.v_root = {};
  add_outer(out.v_root, p.jacobian_x, v_spread_x);
  add_outer(out.v_root, p.jacobian_y, v_spread_y);
  const Vec3<T> v_jacobian_x = multiply(root, v_spread_x), v_jacobian_y = multiply(root, v_spread_y);

  const T scale_x = camera.fx * inverse_z, scale_y = camera.fy * inverse_z;
  out.v_rotation.row[0] = scale_x * v_jacobian_x;
  out.v_rotation.row[1] = scale_y * v_jacobian_y;
  out.v_rotation.row[2] = (-scale_x * p.slope_x) * v_jacobian_x + (-scale_y * p.slope_y) * v_jacobian_y;
  const T v_slope_x = p.inside_x ? -scale_x * dot(v_jacobian_x, r[2]) : T(0);
  const T v_slope_y = p.inside_y ? -scale_y * dot(v_jacobian_y, r[2]) : T(0);
  const T v_scales = dot(v_jacobian_x, p.jacobian_x) + dot(v_jacobian_y, p.jacobian_y); // times -1/z for z

  const T v_x = (camera.fx * v_mean2d.x + v_slope_x) * inverse_z; // of x, through x/z
  const T v_y = (camera.fy * v_mean2d.y + v_slope_y) * inverse_z;
  const Vec3<T> v_point = {v_x, v_y, v_depth - inverse_z * (v_scales + v_x * p.point.x + v_y * p.point.y)};
  add_outer(out.v_rotation, v_point, mean);
  out.v_translation = v_point;
  out.v_mean = multiply_transposed(camera.rotation, v_point);
  return out;
}

} // namespace ddpo3d_fast
