// The bricks of a grid of densities, compiled for scalar.
#define DDPO3D_SIMD_VARIANT scalar
#include "density_bricks_simd.h"
