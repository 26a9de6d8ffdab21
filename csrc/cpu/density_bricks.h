// What one brick of the grid is told; compiled once a SIMD level (density_bricks_*.cpp).
#pragma once

#include <cstdint>

#include "maths/density.h"
#include "simd_level.h"

namespace ddpo3d_fast {

constexpr int kBrick = 16; // points to a side: a row is one vector of AVX-512

struct DensityBrick {
  const DensityGaussian *gaussians;
  const int32_t *chosen; // those that may reach the brick, rising
  int64_t num_chosen;
  double origin[3]; // of the brick's first point
  double cell;
  float *density; // [kBrick, kBrick, kBrick], aligned to 64 bytes, written
};

namespace scalar {
void density_brick(const DensityBrick &brick);
} // namespace scalar
#ifdef DDPO3D_X86_VARIANTS
namespace avx2 {
void density_brick(const DensityBrick &brick);
} // namespace avx2
namespace avx512 {
void density_brick(const DensityBrick &brick);
} // namespace avx512
#endif

} // namespace ddpo3d_fast
