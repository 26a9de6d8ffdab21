// CPU backend of the triangles: threads over bands of rows, each with its own depth buffer.
#include "ddpo3d_fast/triangles.h"

#include <algorithm>
#include <vector>

#include "../maths/triangle.h"
#include "buffer.h"
#include "parallel.h"

namespace ddpo3d_fast {
namespace {

constexpr int64_t kBandRows = 32;

struct Projected {
  Buffer<ImagePoint> points; // [C, V]
  Buffer<PixelBox> boxes;    // [C, F]
  size_t bytes() const { return points.bytes() + boxes.bytes(); }
};

// The nearest triangle of every pixel of some rows: keys [y1 - y0, width].
void fill_band(const TriangleParams &p, const ImagePoint *points, const PixelBox *boxes, int32_t y0,
               int32_t y1, uint64_t *keys) {
  std::fill_n(keys, (y1 - y0) * p.width, kNoTriangle);
  for (int64_t f = 0; f < p.num_triangles; ++f) {
    const PixelBox &box = boxes[f];
    const int32_t first = std::max(box.y0, y0), past = std::min(box.y1, y1);
    if (first >= past || box.x0 >= box.x1)
      continue;
    const int32_t *corner = p.triangles + 3 * f;
    const ImagePoint &a = points[corner[0]], &b = points[corner[1]], &c = points[corner[2]];
    for (int32_t y = first; y < past; ++y) {
      uint64_t *const row = keys + (y - y0) * p.width;
      for (int32_t x = box.x0; x < box.x1; ++x) {
        const TriangleHit hit = triangle_hit(a, b, c, x, y);
        if (hit.inside)
          row[x] = std::min(row[x], depth_key(hit.inverse_z, int32_t(f)));
      }
    }
  }
}

} // namespace

void rasterize_triangles(const TriangleParams &p, const TriangleOutputs &out) {
  Recycled<Projected> scratch;
  ImagePoint *const points = scratch->points.resize(p.num_cameras * p.num_vertices);
  PixelBox *const boxes = scratch->boxes.resize(p.num_cameras * p.num_triangles);
  parallel_for(p.num_cameras * p.num_vertices, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t camera = i / p.num_vertices;
      points[i] = image_point(p.viewmats + 16 * camera, p.intrinsics + 9 * camera,
                              p.vertices + 3 * (i % p.num_vertices), p.near);
    }
  });
  parallel_for(p.num_cameras * p.num_triangles, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ImagePoint *of = points + i / p.num_triangles * p.num_vertices;
      const int32_t *corner = p.triangles + 3 * (i % p.num_triangles);
      boxes[i] = pixel_box(of[corner[0]], of[corner[1]], of[corner[2]], int32_t(p.width), int32_t(p.height));
    }
  });

  const int64_t bands = (p.height + kBandRows - 1) / kBandRows;
  parallel_for(p.num_cameras * bands, [&](int64_t index) {
    const int64_t camera = index / bands, y0 = index % bands * kBandRows,
                  y1 = std::min(p.height, y0 + kBandRows);
    const ImagePoint *of = points + camera * p.num_vertices;
    std::vector<uint64_t> keys((y1 - y0) * p.width);
    fill_band(p, of, boxes + camera * p.num_triangles, int32_t(y0), int32_t(y1), keys.data());
    for (int64_t i = 0; i < int64_t(keys.size()); ++i) {
      const int64_t pixel = (camera * p.height + y0) * p.width + i;
      TriangleHit hit = {};
      int32_t triangle = -1;
      if (keys[i] != kNoTriangle) {
        triangle = triangle_of(keys[i]);
        const int32_t *corner = p.triangles + 3 * int64_t(triangle);
        hit = triangle_hit(of[corner[0]], of[corner[1]], of[corner[2]], int32_t(i % p.width),
                           int32_t(y0 + i / p.width));
      }
      out.triangle[pixel] = triangle;
      std::copy_n(hit.barycentrics, 3, out.barycentrics + 3 * pixel);
      out.depth[pixel] = hit.inside ? 1.0f / hit.inverse_z : 0.0f;
    }
  });
}

} // namespace ddpo3d_fast
