// The number functions of blend.h for a single float, as a GPU thread or a plain loop uses them.
#pragma once

#include <cmath>

#include "host_device.h"

namespace ddpo3d_fast {

DDPO3D_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
DDPO3D_HD float fnma(float a, float b, float c) { return ::fmaf(-a, b, c); } // c - a b

// One instruction each on a GPU, accurate to 1 and 2 units in the last place; numbers below 2^-126 are 0.
DDPO3D_HD float reciprocal(float a) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return 1.0f / a;
#endif
}

DDPO3D_HD float exp2_fast(float a) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return ::exp2f(a);
#endif
}

DDPO3D_HD float select(bool mask, float a, float b) { return mask ? a : b; }

} // namespace ddpo3d_fast
