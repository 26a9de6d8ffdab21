// View-dependent colour: real spherical harmonics up to degree 3 and their VJP.
// Source: Efficient Spherical Harmonic Evaluation (Sloan 2013), in the signs of 3D Gaussian Splatting.
#pragma once

#include <cmath>

#include "vector.h"

namespace ddpo3d_fast {

DDPO3D_HD int sh_count(int degree) { return (degree + 1) * (degree + 1); }

// basis[0 .. (degree+1)²) at the unit vector d.
template <class T> DDPO3D_HD void sh_basis(int degree, const Vec3<T> &d, T *basis) {
  const T x = d.x, y = d.y, z = d.z;
  basis[0] = T(0.28209479177387814);
  if (degree < 1)
    return;
  const T c1 = T(0.4886025119029199);
  basis[1] = -c1 * y;
  basis[2] = c1 * z;
  basis[3] = -c1 * x;
  if (degree < 2)
    return;
  const T xx = x * x, yy = y * y, zz = z * z;
  basis[4] = T(1.0925484305920792) * x * y;
  basis[5] = T(-1.0925484305920792) * y * z;
  basis[6] = T(0.31539156525252005) * (T(2) * zz - xx - yy);
  basis[7] = T(-1.0925484305920792) * x * z;
  basis[8] = T(0.5462742152960396) * (xx - yy);
  if (degree < 3)
    return;
  basis[9] = T(-0.5900435899266435) * y * (T(3) * xx - yy);
  basis[10] = T(2.890611442640554) * x * y * z;
  basis[11] = T(-0.4570457994644658) * y * (T(4) * zz - xx - yy);
  basis[12] = T(0.3731763325901154) * z * (T(2) * zz - T(3) * xx - T(3) * yy);
  basis[13] = T(-0.4570457994644658) * x * (T(4) * zz - xx - yy);
  basis[14] = T(1.445305721320277) * z * (xx - yy);
  basis[15] = T(-0.5900435899266435) * x * (xx - T(3) * yy);
}

// VJP of sh_basis with respect to d, as if d were free (the caller's normalisation takes the tangent part).
template <class T> DDPO3D_HD Vec3<T> sh_basis_vjp(int degree, const Vec3<T> &d, const T *v_basis) {
  Vec3<T> v = {T(0), T(0), T(0)};
  if (degree < 1)
    return v;
  const T x = d.x, y = d.y, z = d.z;
  const T c1 = T(0.4886025119029199);
  v = {-c1 * v_basis[3], -c1 * v_basis[1], c1 * v_basis[2]};
  if (degree < 2)
    return v;
  const T b4 = T(1.0925484305920792) * v_basis[4], b5 = T(-1.0925484305920792) * v_basis[5];
  const T b6 = T(0.31539156525252005) * v_basis[6], b7 = T(-1.0925484305920792) * v_basis[7];
  const T b8 = T(0.5462742152960396) * v_basis[8];
  v.x += b4 * y - T(2) * b6 * x + b7 * z + T(2) * b8 * x;
  v.y += b4 * x + b5 * z - T(2) * b6 * y - T(2) * b8 * y;
  v.z += b5 * y + T(4) * b6 * z + b7 * x;
  if (degree < 3)
    return v;
  const T xx = x * x, yy = y * y, zz = z * z;
  const T b9 = T(-0.5900435899266435) * v_basis[9], b10 = T(2.890611442640554) * v_basis[10];
  const T b11 = T(-0.4570457994644658) * v_basis[11], b12 = T(0.3731763325901154) * v_basis[12];
  const T b13 = T(-0.4570457994644658) * v_basis[13], b14 = T(1.445305721320277) * v_basis[14];
  const T b15 = T(-0.5900435899266435) * v_basis[15];
  v.x += T(6) * b9 * x * y + b10 * y * z - T(2) * b11 * x * y - T(6) * b12 * x * z +
         b13 * (T(4) * zz - T(3) * xx - yy) + T(2) * b14 * x * z + T(3) * b15 * (xx - yy);
  v.y += T(3) * b9 * (xx - yy) + b10 * x * z + b11 * (T(4) * zz - xx - T(3) * yy) - T(6) * b12 * y * z -
         T(2) * b13 * x * y - T(2) * b14 * y * z - T(6) * b15 * x * y;
  v.z += b10 * x * y + T(8) * b11 * y * z + b12 * (T(6) * zz - T(3) * xx - T(3) * yy) + T(8) * b13 * x * z +
         b14 * (xx - yy);
  return v;
}

// A direction to the unit vector, and the VJP.
template <class T> DDPO3D_HD Vec3<T> normalized(const Vec3<T> &v, T &inverse_norm) {
  inverse_norm = T(1) / std::sqrt(dot(v, v));
  return inverse_norm * v;
}

template <class T>
DDPO3D_HD Vec3<T> normalized_vjp(const Vec3<T> &unit, T inverse_norm, const Vec3<T> &v_unit) {
  return inverse_norm * (v_unit - dot(v_unit, unit) * unit);
}

} // namespace ddpo3d_fast
