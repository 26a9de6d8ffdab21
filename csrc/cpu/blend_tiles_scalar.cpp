// The tiles' forward and backward, compiled for scalar.
#define DDPO3D_SIMD_VARIANT scalar
#include "blend_tiles_simd.h"
