// The tiles' forward and backward, compiled for avx2.
#define DDPO3D_SIMD_VARIANT avx2
#include "blend_tiles_simd.h"
