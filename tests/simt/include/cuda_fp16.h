// Half precision as storage: conversions from and to float, round to nearest even, as CUDA's header has them.
#pragma once

#include "simt/intrinsics.h"
#include "simt/types.h"

struct __half {
  uint16_t bits;
};

using half = __half;

inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

inline float __half2float(__half h) {
  const uint32_t sign = uint32_t(h.bits >> 15) << 31, exponent = h.bits >> 10 & 31, fraction = h.bits & 1023;
  if (exponent == 31) // infinity, NaN
    return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  const float magnitude =
      exponent == 0 ? ldexpf(float(fraction), -24) : ldexpf(float(1024 + fraction), int(exponent) - 25);
  return sign ? -magnitude : magnitude;
}

inline __half __float2half_rn(float x) {
  const uint16_t sign = uint16_t(__float_as_uint(x) >> 16 & 0x8000);
  const float magnitude = fabsf(x);
  if (!(magnitude < 65520.0f)) // infinity and what rounds to it; NaN is CUDA's
    return {uint16_t(magnitude != magnitude ? 0x7fff : sign | 0x7c00)};
  if (magnitude < 0x1p-14f) // subnormal: a multiple of 2⁻²⁴, which may round up to the least normal number
    return {uint16_t(sign | uint16_t(nearbyintf(magnitude * 0x1p24f)))};
  const uint32_t bits = __float_as_uint(magnitude) - (112u << 23); // of the half, 13 more below
  return {uint16_t(sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13)};
}

inline __half __float2half(float x) { return __float2half_rn(x); }
