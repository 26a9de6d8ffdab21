// CPU backend of the density on a grid: threads over rows of bricks, each of which finds its Gaussians.
#include "ddpo3d_fast/density.h"

#include <algorithm>
#include <vector>

#include "density_bricks.h"
#include "parallel.h"

namespace ddpo3d_fast {
namespace {

using BrickKernel = void (*)(const DensityBrick &);

BrickKernel brick_kernel() {
#ifdef DDPO3D_X86_VARIANTS
  switch (simd_level()) {
  case SimdLevel::avx512:
    return avx512::density_brick;
  case SimdLevel::avx2:
    return avx2::density_brick;
  case SimdLevel::scalar:
    break;
  }
#else
  simd_level(); // for its complaint about DDPO3D_SIMD
#endif
  return scalar::density_brick;
}

// Whether a Gaussian's box touches the points from `first` to `first` + `length`, along one axis; with a
// margin against rounding.
bool touches(double mean, float reach, double first, double length, double cell) {
  return mean + reach >= first - cell && mean - reach <= first + length + cell;
}

} // namespace

void gaussian_density(const DensityParams &p) {
  const BrickKernel kernel = brick_kernel();
  std::vector<DensityGaussian> gaussians(p.num_gaussians);
  parallel_for(p.num_gaussians, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      gaussians[i] =
          density_gaussian(p.means + 3 * i, p.quats + 4 * i, p.scales + 3 * i, p.opacities[i], p.dilation);
  });

  const auto bricks = [](int64_t points) { return (points + kBrick - 1) / kBrick; };
  const int64_t columns = bricks(p.width), rows = bricks(p.height), layers = bricks(p.depth);
  const double side = kBrick * p.cell, length = (kBrick - 1) * p.cell;
  parallel_for(rows * layers, [&](int64_t index) {
    const int64_t row = index % rows, layer = index / rows;
    const double y = p.origin[1] + side * row, z = p.origin[2] + side * layer;
    std::vector<int32_t> of_row, of_brick;
    for (int64_t i = 0; i < p.num_gaussians; ++i) {
      const DensityGaussian &g = gaussians[i];
      if (g.reach_x >= 0 && touches(g.y, g.reach_y, y, length, p.cell) &&
          touches(g.z, g.reach_z, z, length, p.cell))
        of_row.push_back(int32_t(i));
    }
    alignas(64) float density[kBrick * kBrick * kBrick];
    for (int64_t column = 0; column < columns; ++column) {
      const double x = p.origin[0] + side * column;
      of_brick.clear();
      for (int32_t i : of_row)
        if (touches(gaussians[i].x, gaussians[i].reach_x, x, length, p.cell))
          of_brick.push_back(i);
      kernel({gaussians.data(), of_brick.data(), int64_t(of_brick.size()), {x, y, z}, p.cell, density});
      const int64_t count = std::min<int64_t>(kBrick, p.width - column * kBrick);
      for (int64_t k = 0; k < kBrick && layer * kBrick + k < p.depth; ++k)
        for (int64_t j = 0; j < kBrick && row * kBrick + j < p.height; ++j)
          std::copy_n(density + (k * kBrick + j) * kBrick, count,
                      p.density + ((layer * kBrick + k) * p.height + row * kBrick + j) * p.width +
                          column * kBrick);
    }
  });
}

} // namespace ddpo3d_fast
