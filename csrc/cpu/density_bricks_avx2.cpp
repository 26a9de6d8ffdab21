// The bricks of a grid of densities, compiled for avx2.
#define DDPO3D_SIMD_VARIANT avx2
#include "density_bricks_simd.h"
