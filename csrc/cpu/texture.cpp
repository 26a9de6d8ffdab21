// CPU backend of texture sampling: threads over pixels forward; backward the samples are sorted by the row of
// texels that they lie in, in the order of pixels, and threads go over rows.
#include <algorithm>
#include <utility>
#include <vector>

#include "../maths/texture.h"
#include "buffer.h"
#include "ddpo3d_fast/triangles.h"
#include "parallel.h"

namespace ddpo3d_fast {
namespace {

constexpr int64_t kGrain = 4096; // pixels

struct Sample {
  TexturePoint point;
  int64_t pixel;
};

struct Samples {
  Buffer<Sample> of; // sorted
  size_t bytes() const { return of.bytes(); }
};

bool point_at(const TextureParams &p, int64_t pixel, TexturePoint &point) {
  const int64_t triangle = p.triangle[pixel];
  if (triangle < 0)
    return false;
  point = texture_point(p.corners + 6 * triangle, p.barycentrics + 3 * pixel, int32_t(p.width),
                        int32_t(p.height));
  return true;
}

} // namespace

void sample_texture(const TextureParams &p, const float *texture, float *rgb) {
  parallel_for(p.num_pixels, kGrain, [&](int64_t begin, int64_t end) {
    TexturePoint at;
    for (int64_t i = begin; i < end; ++i) {
      const bool seen = point_at(p, i, at);
      for (int c = 0; c < 3; ++c) {
        float sum = 0.0f;
        for (int corner = 0; seen && corner < 4; ++corner) {
          const int later = corner & 1, lower = corner >> 1;
          sum = texel_weight(at, later, lower) *
                    texture[3 * ((at.row + lower) * p.width + at.column + later) + c] +
                sum;
        }
        rgb[3 * i + c] = sum;
      }
    }
  });
}

void sample_texture_backward(const TextureParams &p, const float *grad_rgb, float *grad_texture) {
  const int64_t pieces = (p.num_pixels + kGrain - 1) / kGrain, rows = p.height;
  // How many samples of a piece lie in a row, and then where they begin: pieces follow each other within a
  // row.
  std::vector<int64_t> place(rows * pieces + 1, 0);
  parallel_for(p.num_pixels, kGrain, [&](int64_t begin, int64_t end) {
    TexturePoint at;
    for (int64_t i = begin; i < end; ++i)
      if (point_at(p, i, at))
        ++place[at.row * pieces + begin / kGrain];
  });
  int64_t total = 0;
  for (int64_t &count : place)
    total += std::exchange(count, total);
  Recycled<Samples> scratch;
  Sample *const samples = scratch->of.resize(std::max<int64_t>(total, 1));
  std::vector<int64_t> next(place);
  parallel_for(p.num_pixels, kGrain, [&](int64_t begin, int64_t end) {
    TexturePoint at;
    for (int64_t i = begin; i < end; ++i)
      if (point_at(p, i, at))
        samples[next[at.row * pieces + begin / kGrain]++] = {at, i};
  });

  parallel_for(rows, [&](int64_t row) {
    std::vector<double> sums(3 * p.width, 0.0);
    for (int lower = 1; lower >= 0; --lower) { // the samples of the row above, then its own
      const int64_t of = row - lower;
      if (of < 0)
        continue;
      for (int64_t k = place[of * pieces]; k < place[(of + 1) * pieces]; ++k) {
        const Sample &sample = samples[k];
        for (int later = 0; later < 2; ++later) {
          const float weight = texel_weight(sample.point, later, lower);
          for (int c = 0; c < 3; ++c)
            sums[3 * (sample.point.column + later) + c] += double(weight) * grad_rgb[3 * sample.pixel + c];
        }
      }
    }
    for (int64_t i = 0; i < 3 * p.width; ++i)
      grad_texture[3 * row * p.width + i] = float(sums[i]);
  });
}

} // namespace ddpo3d_fast
