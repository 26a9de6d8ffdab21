// One Gaussian before one camera, in double precision: what the projection and its backward pass both need.
#pragma once

#include <cmath>

#include "ddpo3d_fast/rasterizer.h"
#include "maths/blend.h"
#include "maths/camera.h"
#include "maths/gaussian.h"
#include "maths/sh.h"

namespace ddpo3d_fast {

inline Camera<double> load_camera(const RasterizeParams &params, int64_t camera) {
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

struct GaussianShape {
  Vec3<double> mean, scale;
  Quat<double> quat; // unit
  double inverse_norm;
  Mat3<double> rotation, root;
};

inline GaussianShape load_shape(const RasterizeParams &params, int64_t n) {
  GaussianShape out;
  const float *m = params.means + 3 * n, *q = params.quats + 4 * n, *s = params.scales + 3 * n;
  out.mean = {m[0], m[1], m[2]};
  out.scale = {s[0], s[1], s[2]};
  out.quat = normalized(Quat<double>{q[0], q[1], q[2], q[3]}, out.inverse_norm);
  out.rotation = rotation_matrix(out.quat);
  out.root = covariance_root(out.rotation, out.scale);
  return out;
}

struct ViewedGaussian {
  Projection<double> projection;
  Footprint<double> footprint;
};

inline ViewedGaussian view_gaussian(const RasterizeParams &params, const Camera<double> &camera,
                                    const GaussianShape &shape, int64_t n) {
  ViewedGaussian out;
  out.projection = project(camera, shape.mean, shape.root);
  const Projection<double> &p = out.projection;
  out.footprint = footprint(p.xx, p.xy, p.yy, p.det, double(params.opacities[n]), params.antialiased);
  return out;
}

} // namespace ddpo3d_fast
