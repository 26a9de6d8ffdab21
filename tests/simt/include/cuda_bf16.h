// bfloat16 as storage: conversions from and to float, round to nearest even, as CUDA's header has them.
#pragma once

#include "simt/intrinsics.h"
#include "simt/types.h"

struct __nv_bfloat16 {
  uint16_t bits;
};

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }

inline float __bfloat162float(__nv_bfloat16 b) { return __uint_as_float(uint32_t(b.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (x != x)
    return {0x7fff}; // CUDA's NaN
  const uint32_t bits = __float_as_uint(x);
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }
