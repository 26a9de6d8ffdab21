// Counter-based normal noise: Philox4x32-10 and the Box-Muller transform.
//
// Philox: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3.
// Box-Muller: Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.
//
// Element i of a tensor is output i % 4 of the counter (i / 4, stream) under the key `seed`, whatever the
// tensor's shape, the number of threads or the backend, so noise is regenerated where it is needed and never
// stored.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace ddpo3d_fast {

struct PhiloxWords {
  uint32_t x0, x1, x2, x3;
};

// Ten rounds of Philox4x32 (figure 2 and table 2 of the paper: multipliers M, Weyl key increments W).
DDPO3D_HD PhiloxWords philox4x32_10(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  constexpr uint64_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
  constexpr uint32_t weyl0 = 0x9E3779B9u, weyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = multiplier0 * counter.x0;
    const uint64_t product1 = multiplier1 * counter.x2;
    counter = {uint32_t(product1 >> 32) ^ counter.x1 ^ key0, uint32_t(product1),
               uint32_t(product0 >> 32) ^ counter.x3 ^ key1, uint32_t(product0)};
    key0 += weyl0;
    key1 += weyl1;
  }
  return counter;
}

// The four words that belong to elements 4*index .. 4*index + 3 of a stream.
DDPO3D_HD PhiloxWords philox_words(uint64_t seed, uint64_t stream, uint64_t index) {
  const PhiloxWords counter{uint32_t(index), uint32_t(index >> 32), uint32_t(stream), uint32_t(stream >> 32)};
  return philox4x32_10(counter, uint32_t(seed), uint32_t(seed >> 32));
}

// Uniform in (0, 1]: the midpoint of one of 2^32 cells, rounded to float.
DDPO3D_HD float uniform_open_closed(uint32_t word) { return float(word) * 0x1p-32f + 0x1p-33f; }

// ln(u) for a normal positive float. u = 2^e m with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh((m - 1) / (m +
// 1)), whose series is cut after s^9 (remainder below 1e-9). Written without branches and libm calls, so that
// a compiler turns loops over it into SIMD.
DDPO3D_HD float log_positive(float u) {
  constexpr int32_t sqrt_half_bits = 0x3f3504f3;
  int32_t bits;
  memcpy(&bits, &u, sizeof bits);
  const int32_t exponent = (bits - sqrt_half_bits) >> 23;
  const int32_t mantissa_bits = bits - exponent * (1 << 23);
  float mantissa;
  memcpy(&mantissa, &mantissa_bits, sizeof mantissa);
  const float s = (mantissa - 1.f) / (mantissa + 1.f);
  const float s2 = s * s;
  const float series = 1.f + s2 * (1.f / 3 + s2 * (1.f / 5 + s2 * (1.f / 7 + s2 * (1.f / 9))));
  return float(exponent) * 0.693147180559945f + 2.f * s * series;
}

// sin and cos of 2 pi word / 2^32. The quadrant comes exactly from the word's upper bits; the rest lies in
// [-pi/4, pi/4), where the Taylor series cut after x^9 and x^10 are below half a unit in the last place.
DDPO3D_HD void sin_cos_turn(uint32_t word, float &sine, float &cosine) {
  const uint32_t quadrant = (word + 0x20000000u) >> 30;
  const float x = float(int32_t(word - (quadrant << 30))) * 0x1p-32f * 6.283185307179586f;
  const float x2 = x * x;
  const float sin_x =
      x * (1.f + x2 * (-1.f / 6 + x2 * (1.f / 120 + x2 * (-1.f / 5040 + x2 * (1.f / 362880)))));
  const float cos_x =
      1.f + x2 * (-0.5f + x2 * (1.f / 24 + x2 * (-1.f / 720 + x2 * (1.f / 40320 + x2 * (-1.f / 3628800)))));
  const bool swapped = quadrant & 1u;
  const float s = swapped ? cos_x : sin_x;
  const float c = swapped ? sin_x : cos_x;
  sine = (quadrant & 2u) ? -s : s;
  cosine = ((quadrant + 1u) & 2u) ? -c : c;
}

// Two independent standard normals from two words. |normal| <= sqrt(2 ln 2^33) = 6.76.
DDPO3D_HD void box_muller(uint32_t radius_word, uint32_t angle_word, float &normal0, float &normal1) {
  // The rounding of log_positive can pass 0 by an ulp at u = 1.
  const float squared = -2.f * log_positive(uniform_open_closed(radius_word));
  const float radius = sqrtf(squared > 0.f ? squared : 0.f);
  float sine, cosine;
  sin_cos_turn(angle_word, sine, cosine);
  normal0 = radius * cosine;
  normal1 = radius * sine;
}

} // namespace ddpo3d_fast
