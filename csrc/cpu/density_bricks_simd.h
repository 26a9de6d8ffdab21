// Density of one brick with SIMD along x: the body that every SIMD level compiles. As in blend_tiles_simd.h,
// nothing is called that the compiler might leave uninlined.
#include "density_bricks.h"

#include "simd.h"

namespace ddpo3d_fast {
namespace DDPO3D_SIMD_VARIANT {
namespace {

// The rows or layers of a brick that lie within `reach` of a mean, `from` being its first one's offset.
struct Reached {
  int first, last;
};

DDPO3D_HD Reached reached(double from, double cell, double reach) {
  // One more on either side, so that rounding loses none; what is below the cut is cut anyway.
  const double low = (-reach - from) / cell - 1, high = (reach - from) / cell + 1;
  return {low > 0 ? int(low < kBrick ? low : kBrick) : 0,
          high < kBrick - 1 ? int(high < 0 ? -1 : high) : kBrick - 1};
}

} // namespace

void density_brick(const DensityBrick &brick) {
  for (int i = 0; i < kBrick * kBrick * kBrick; ++i)
    brick.density[i] = 0.0f;
  const float cell = float(brick.cell);
  alignas(64) float at[kBrick];
  for (int i = 0; i < kBrick; ++i)
    at[i] = cell * i;
  const Float zero = 0.0f, cut = float(kLog2AlphaCut);
  for (int64_t k = 0; k < brick.num_chosen; ++k) {
    const DensityGaussian &g = brick.gaussians[brick.chosen[k]];
    const double dx = brick.origin[0] - g.x, dy = brick.origin[1] - g.y, dz = brick.origin[2] - g.z;
    const Reached layers = reached(dz, brick.cell, g.reach_z), rows = reached(dy, brick.cell, g.reach_y);
    for (int z = layers.first; z <= layers.last; ++z)
      for (int y = rows.first; y <= rows.last; ++y) {
        const DensityRow row =
            density_row(g, float(dx), float(dy + brick.cell * y), float(dz + brick.cell * z));
        if (row.top < float(kLog2AlphaCut))
          continue;
        float *const out = brick.density + (z * kBrick + y) * kBrick;
        for (int x = 0; x < kBrick; x += kLanes) {
          const Float exponent = log2_density<Float>(row, load(at + x));
          const Float value = select(exponent >= cut, exp2_fast(exponent), zero);
          store(out + x, load(out + x) + value);
        }
      }
  }
}

} // namespace DDPO3D_SIMD_VARIANT
} // namespace ddpo3d_fast
