// The number functions of blend.h for a single float, as a GPU thread or a plain loop uses them.
#pragma once

#include <cmath>

#include "host_device.h"

namespace ddpo3d_fast {

DDPO3D_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
DDPO3D_HD float fnma(float a, float b, float c) { return ::fmaf(-a, b, c); } // c - a b
DDPO3D_HD float reciprocal(float a) { return 1.0f / a; }
DDPO3D_HD float exp2_fast(float a) { return ::exp2f(a); }
DDPO3D_HD float select(bool mask, float a, float b) { return mask ? a : b; }

} // namespace ddpo3d_fast
