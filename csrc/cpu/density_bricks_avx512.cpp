// The bricks of a grid of densities, compiled for avx512.
#define DDPO3D_SIMD_VARIANT avx512
#include "density_bricks_simd.h"
