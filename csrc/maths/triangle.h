// A triangle over the pixels of a view: which it covers, where on it a pixel's ray meets it, how deep.
// Source: Pineda, A Parallel Algorithm for Polygon Rasterization (1988), for the edge functions; Blinn,
// Hyperbolic Interpolation (1992), for what perspective does to barycentric coordinates.
//
// Corners are rounded to 1/256 px, so that edge functions are whole numbers and two triangles that share an
// edge leave no gap on it. Both sides of a triangle are seen.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "camera.h"

namespace ddpo3d_fast {

constexpr int kSubpixel = 256;               // steps of a pixel
constexpr float kFarthestPixel = 1048576.0f; // a corner further off takes its triangle out of the view
constexpr uint64_t kNoTriangle = ~uint64_t(0);

// A vertex on the image.
struct ImagePoint {
  int32_t x, y;    // in steps of 1/256 px
  float inverse_z; // 1 / depth; 0 where no triangle with it can be drawn
};

DDPO3D_HD ImagePoint image_point(const float *viewmat, const float *intrinsics, const float *vertex,
                                 float near) {
  double p[3];
  for (int i = 0; i < 3; ++i)
    p[i] = double(viewmat[4 * i]) * vertex[0] + double(viewmat[4 * i + 1]) * vertex[1] +
           double(viewmat[4 * i + 2]) * vertex[2] + viewmat[4 * i + 3];
  const double x = intrinsics[0] * (p[0] / p[2]) + intrinsics[2],
               y = intrinsics[4] * (p[1] / p[2]) + intrinsics[5];
  if (!(p[2] >= near) || !(p[2] < 1e30) || !(x > -kFarthestPixel && x < kFarthestPixel) ||
      !(y > -kFarthestPixel && y < kFarthestPixel))
    return {0, 0, 0.0f};
  return {int32_t(std::floor(kSubpixel * x + 0.5)), int32_t(std::floor(kSubpixel * y + 0.5)),
          float(1 / p[2])};
}

// The edge function of p and the edge from a to b, twice the area of their triangle, in steps².
DDPO3D_HD int64_t edge(const ImagePoint &a, const ImagePoint &b, int64_t x, int64_t y) {
  return (int64_t(b.x) - a.x) * (y - a.y) - (int64_t(b.y) - a.y) * (x - a.x);
}

struct PixelBox {
  int32_t x0, y0, x1,
      y1; // first pixels, and those past the last; empty where no pixel's centre can be covered
};

// The pixels whose centres a triangle may cover, of an image.
DDPO3D_HD PixelBox pixel_box(const ImagePoint &a, const ImagePoint &b, const ImagePoint &c, int32_t width,
                             int32_t height) {
  if (!(a.inverse_z > 0 && b.inverse_z > 0 && c.inverse_z > 0))
    return {0, 0, 0, 0};
  const auto least = [](int32_t p, int32_t q, int32_t r) {
    return p < q ? (p < r ? p : r) : (q < r ? q : r);
  };
  const auto most = [](int32_t p, int32_t q, int32_t r) { return p > q ? (p > r ? p : r) : (q > r ? q : r); };
  // Centres lie at +1/2: the first one at or after the least, and the one past the last at or before the
  // most.
  const int32_t half = kSubpixel / 2;
  const auto first = [=](int32_t v) { return v <= half ? 0 : (v - half + kSubpixel - 1) / kSubpixel; };
  const auto past = [=](int32_t v, int32_t size) {
    const int32_t end = v < half ? 0 : (v - half) / kSubpixel + 1;
    return end < size ? end : size;
  };
  return {first(least(a.x, b.x, c.x)), first(least(a.y, b.y, c.y)), past(most(a.x, b.x, c.x), width),
          past(most(a.y, b.y, c.y), height)};
}

struct TriangleHit {
  bool inside;
  float barycentrics[3]; // of the corners, on the triangle in space
  float inverse_z;
};

// What a triangle shows at a pixel's centre.
DDPO3D_HD TriangleHit triangle_hit(const ImagePoint &a, const ImagePoint &b, const ImagePoint &c,
                                   int32_t column, int32_t row) {
  const int64_t x = int64_t(column) * kSubpixel + kSubpixel / 2, y = int64_t(row) * kSubpixel + kSubpixel / 2;
  const int64_t wa = edge(b, c, x, y), wb = edge(c, a, x, y), wc = edge(a, b, x, y), area = wa + wb + wc;
  TriangleHit hit = {};
  hit.inside = (area > 0 && wa >= 0 && wb >= 0 && wc >= 0) || (area < 0 && wa <= 0 && wb <= 0 && wc <= 0);
  if (!hit.inside)
    return hit;
  const double qa = double(wa) * a.inverse_z, qb = double(wb) * b.inverse_z, qc = double(wc) * c.inverse_z;
  const double sum = qa + qb + qc;
  hit.barycentrics[0] = float(qa / sum);
  hit.barycentrics[1] = float(qb / sum);
  hit.barycentrics[2] = float(qc / sum);
  hit.inverse_z = float(sum / double(area));
  return hit;
}

// A number that is less for what is nearer and, at the same depth, comes first.
DDPO3D_HD uint64_t depth_key(float inverse_z, int32_t triangle) {
  uint32_t bits;
  memcpy(&bits, &inverse_z, sizeof bits);
  return uint64_t(~bits) << 32 | uint32_t(triangle);
}

DDPO3D_HD int32_t triangle_of(uint64_t key) { return int32_t(uint32_t(key)); }

} // namespace ddpo3d_fast
