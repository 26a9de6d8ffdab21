// Density of Gaussians at points in space: d(x) = Σ oᵢ exp(-½ (x - μᵢ)ᵀ Σᵢ⁻¹ (x - μᵢ)), each cut where it is
// below kAlphaCut.
// Source: DreamGaussian (Tang et al., arXiv 2309.16653), eq. 4, its local density query; what dilates the
// covariance: the 3D smoothing filter of Mip-Splatting (Yu et al. 2024), eq. 9, without its factor.
#pragma once

#include "blend.h"
#include "gaussian.h"

namespace ddpo3d_fast {

// A Gaussian as a grid wants it. u = W (x - mean) whitens its covariance and folds in the change to base 2,
// so that its density is opacity 2^-|u|²; W is upper triangular and WᵀW = log2(e)/2 Σ⁻¹.
struct DensityGaussian {
  double x, y, z; // mean, world
  float w11, w12, w13, w22, w23, w33;
  float log2_opacity;
  float reach_x, reach_y, reach_z; // half-sides of the box outside which it is below the cut; negative: none
};

// `dilation`: variance added along every axis, world units². A Gaussian with numbers that are not finite, or
// flatter than double precision tells from no thickness, is none.
DDPO3D_HD DensityGaussian density_gaussian(const float *mean, const float *quat, const float *scale,
                                           float opacity, float dilation) {
  DensityGaussian out = {};
  out.reach_x = -1.0f;
  double inverse_norm;
  const Quat<double> q = normalized(Quat<double>{quat[0], quat[1], quat[2], quat[3]}, inverse_norm);
  const Mat3<double> m = covariance_root(rotation_matrix(q), Vec3<double>{scale[0], scale[1], scale[2]});
  const double xx = dot(m.row[0], m.row[0]) + dilation, yy = dot(m.row[1], m.row[1]) + dilation,
               zz = dot(m.row[2], m.row[2]) + dilation, xy = dot(m.row[0], m.row[1]),
               xz = dot(m.row[0], m.row[2]), yz = dot(m.row[1], m.row[2]);
  // Σ = U Uᵀ with U upper triangular, and W is a multiple of its inverse.
  const double u33 = std::sqrt(zz), u23 = yz / u33, u13 = xz / u33;
  const double square22 = yy - u23 * u23, u22 = std::sqrt(square22), u12 = (xy - u13 * u23) / u22;
  const double square11 = xx - u12 * u12 - u13 * u13, u11 = std::sqrt(square11);
  const double sum = double(mean[0]) + mean[1] + mean[2] + xx + yy + zz;
  if (!(opacity > float(kAlphaCut)) || !(square11 > 1e-14 * xx) || !(square22 > 1e-14 * yy) || !(zz > 0) ||
      !(sum - sum == 0))
    return out;
  const double k = 0.8493218002880191; // √(log2(e)/2)
  out.x = mean[0], out.y = mean[1], out.z = mean[2];
  out.w11 = float(k / u11);
  out.w22 = float(k / u22);
  out.w33 = float(k / u33);
  out.w12 = float(-k * u12 / (u11 * u22));
  out.w23 = float(-k * u23 / (u22 * u33));
  out.w13 = float(k * (u12 * u23 - u13 * u22) / (u11 * u22 * u33));
  out.log2_opacity = float(std::log(double(opacity)) / kLn2);
  const double reach = 2 * std::log(double(opacity) / kAlphaCut); // of xᵀΣ⁻¹x
  out.reach_x = float(std::sqrt(reach * xx));
  out.reach_y = float(std::sqrt(reach * yy));
  out.reach_z = float(std::sqrt(reach * zz));
  return out;
}

// A Gaussian along a line in x: log2 of its density is top - (w11 x + u1)².
struct DensityRow {
  float w11, u1, top;
};

// (dx, dy, dz): the line's origin from the mean.
DDPO3D_HD DensityRow density_row(const DensityGaussian &g, float dx, float dy, float dz) {
  const float u2 = fma(g.w22, dy, g.w23 * dz), u3 = g.w33 * dz;
  return {g.w11, fma(g.w11, dx, fma(g.w12, dy, g.w13 * dz)), fnma(u3, u3, fnma(u2, u2, g.log2_opacity))};
}

// log2 of the density at x, from the line's origin.
template <class F> DDPO3D_HD F log2_density(const DensityRow &row, F x) {
  const F u = fma(F(row.w11), x, F(row.u1));
  return fnma(u, u, F(row.top));
}

} // namespace ddpo3d_fast
