// A Gaussian's shape: quaternion and scales to the root M = R S of its covariance Σ = M Mᵀ, and the VJP.
// Source: 3D Gaussian Splatting (Kerbl et al. 2023), eq. 6.
#pragma once

#include <cmath>

#include "vector.h"

namespace ddpo3d_fast {

template <class T> struct Quat {
  T w, x, y, z;
};

// q / |q|; the caller sees to it that |q| > 0.
template <class T> DDPO3D_HD Quat<T> normalized(const Quat<T> &q, T &inverse_norm) {
  inverse_norm = T(1) / std::sqrt(q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z);
  return {q.w * inverse_norm, q.x * inverse_norm, q.y * inverse_norm, q.z * inverse_norm};
}

// The rotation matrix R of a unit quaternion.
template <class T> DDPO3D_HD Mat3<T> rotation_matrix(const Quat<T> &q) {
  const T two = T(2);
  return {
      {{T(1) - two * (q.y * q.y + q.z * q.z), two * (q.x * q.y - q.w * q.z), two * (q.x * q.z + q.w * q.y)},
       {two * (q.x * q.y + q.w * q.z), T(1) - two * (q.x * q.x + q.z * q.z), two * (q.y * q.z - q.w * q.x)},
       {two * (q.x * q.z - q.w * q.y), two * (q.y * q.z + q.w * q.x), T(1) - two * (q.x * q.x + q.y * q.y)}}};
}

// VJP of rotation_matrix.
template <class T> DDPO3D_HD Quat<T> rotation_matrix_vjp(const Quat<T> &q, const Mat3<T> &v_rotation) {
  const Vec3<T> &a = v_rotation.row[0], &b = v_rotation.row[1], &c = v_rotation.row[2];
  const T two = T(2), four = T(4);
  return {two * (q.x * (c.y - b.z) + q.y * (a.z - c.x) + q.z * (b.x - a.y)),
          two * (q.w * (c.y - b.z) + q.y * (a.y + b.x) + q.z * (a.z + c.x)) - four * q.x * (b.y + c.z),
          two * (q.w * (a.z - c.x) + q.x * (a.y + b.x) + q.z * (b.z + c.y)) - four * q.y * (a.x + c.z),
          two * (q.w * (b.x - a.y) + q.x * (a.z + c.x) + q.y * (b.z + c.y)) - four * q.z * (a.x + b.y)};
}

// VJP of rotation_matrix(normalized(q)) with respect to q; `q` is the unit quaternion.
template <class T>
DDPO3D_HD Quat<T> rotation_matrix_vjp(const Quat<T> &q, T inverse_norm, const Mat3<T> &v_rotation) {
  const Quat<T> v = rotation_matrix_vjp(q, v_rotation);
  // Normalisation passes only what is orthogonal to q.
  const T along = v.w * q.w + v.x * q.x + v.y * q.y + v.z * q.z;
  return {inverse_norm * (v.w - along * q.w), inverse_norm * (v.x - along * q.x),
          inverse_norm * (v.y - along * q.y), inverse_norm * (v.z - along * q.z)};
}

// M = R S: the columns of R, each times its scale.
template <class T> DDPO3D_HD Mat3<T> covariance_root(const Mat3<T> &rotation, const Vec3<T> &scale) {
  Mat3<T> root;
  for (int i = 0; i < 3; ++i)
    root.row[i] = {rotation.row[i].x * scale.x, rotation.row[i].y * scale.y, rotation.row[i].z * scale.z};
  return root;
}

template <class T>
DDPO3D_HD void covariance_root_vjp(const Mat3<T> &rotation, const Vec3<T> &scale, const Mat3<T> &v_root,
                                   Mat3<T> &v_rotation, Vec3<T> &v_scale) {
  v_scale = {T(0), T(0), T(0)};
  for (int i = 0; i < 3; ++i) {
    const Vec3<T> &r = rotation.row[i], &v = v_root.row[i];
    v_rotation.row[i] = {v.x * scale.x, v.y * scale.y, v.z * scale.z};
    v_scale = v_scale + Vec3<T>{v.x * r.x, v.y * r.y, v.z * r.z};
  }
}

} // namespace ddpo3d_fast
