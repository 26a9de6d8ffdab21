// The tiles' forward and backward, compiled for avx512.
#define DDPO3D_SIMD_VARIANT avx512
#include "blend_tiles_simd.h"
