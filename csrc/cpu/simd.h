// A vector of floats, its mask and its arithmetic: 16 lanes of AVX-512, 8 of AVX2 with FMA, or 4 of whatever
// every processor of the architecture has. The including file's compiler flags decide.
//
// Included by one file a variant. Everything lives in the variant's own namespace, DDPO3D_SIMD_VARIANT, so
// that code for one processor is never linked into the path of another.
#pragma once

#include <cstdint>

#include "maths/host_device.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace ddpo3d_fast {
namespace DDPO3D_SIMD_VARIANT {

// 2^f on [-½, ½], our minimax fit of degree 5 with the first coefficient held at 1: 9.2e-8 relative at most.
constexpr float kExp2[6] = {1.0f, 0.693146978f, 0.240222421f, 0.0555073374f, 0.00967151265f, 0.00132647271f};

#if defined(__AVX512F__)

constexpr int kLanes = 16;

struct Mask {
  __mmask16 bits;
};

struct Float {
  __m512 v;
  Float() = default;
  inline __attribute__((always_inline)) Float(__m512 value) : v(value) {}
  inline __attribute__((always_inline)) Float(float value) : v(_mm512_set1_ps(value)) {}
};

DDPO3D_HD Float load(const float *p) { return _mm512_load_ps(p); }
DDPO3D_HD void store(float *p, Float a) { _mm512_store_ps(p, a.v); }
DDPO3D_HD Float operator+(Float a, Float b) { return _mm512_add_ps(a.v, b.v); }
DDPO3D_HD Float operator-(Float a, Float b) { return _mm512_sub_ps(a.v, b.v); }
DDPO3D_HD Float operator*(Float a, Float b) { return _mm512_mul_ps(a.v, b.v); }
DDPO3D_HD Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
DDPO3D_HD Float fnma(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }
DDPO3D_HD Float min(Float a, Float b) { return _mm512_min_ps(a.v, b.v); }
DDPO3D_HD Mask operator>=(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
DDPO3D_HD Mask operator<=(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
DDPO3D_HD Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits & b.bits)}; }
DDPO3D_HD Mask and_not(Mask a, Mask b) { return {static_cast<__mmask16>(a.bits & ~b.bits)}; }
DDPO3D_HD bool any(Mask a) { return a.bits != 0; }
DDPO3D_HD Float select(Mask m, Float a, Float b) { return _mm512_mask_blend_ps(m.bits, b.v, a.v); }
DDPO3D_HD Mask greater(const int32_t *p, int32_t b) {
  return {_mm512_cmpgt_epi32_mask(_mm512_load_si512(p), _mm512_set1_epi32(b))};
}
DDPO3D_HD void store_where(Mask m, int32_t *p, int32_t value) {
  _mm512_mask_store_epi32(p, m.bits, _mm512_set1_epi32(value));
}

DDPO3D_HD Float exp2_fast(Float a) {
  const __m512 n = _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(a.v, n);
  __m512 p = _mm512_set1_ps(kExp2[5]);
  for (int i = 4; i >= 0; --i)
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kExp2[i]));
  return _mm512_scalef_ps(p, n);
}

// 1/a for a in [0.01, 1]: one Newton step on 14 bits.
DDPO3D_HD Float reciprocal(Float a) {
  const __m512 r = _mm512_rcp14_ps(a.v);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(a.v, r, _mm512_set1_ps(1.0f)), r, r);
}

// out[i] = the sum of v[i]'s lanes, i < 10. Vectors are folded in pairs, so that most additions do two sums
// at a time.
DDPO3D_HD void store_sums(const Float (&v)[10], float *out) {
  const auto fold_halves = [](__m512 a, __m512 b) { // 128-bit parts: a0 + a2, a1 + a3, b0 + b2, b1 + b3
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  };
  const auto fold_quarters = [](__m512 a, __m512 b) { // one 128-bit part for each of four
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
  };
  const __m512 v0123 = fold_quarters(fold_halves(v[0].v, v[1].v), fold_halves(v[2].v, v[3].v));
  const __m512 v4567 = fold_quarters(fold_halves(v[4].v, v[5].v), fold_halves(v[6].v, v[7].v));
  const __m512 v89 = fold_quarters(fold_halves(v[8].v, v[9].v), _mm512_setzero_ps());
  const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(v0123, v4567), _mm512_unpackhi_ps(v0123, v4567));
  const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(v89, v89), _mm512_unpackhi_ps(v89, v89));
  // Part p now holds the sums p, 4 + p, 8 + p (and 8 + p again).
  const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xEE));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 0, 0, 0, 0, 0, 0);
  _mm512_mask_storeu_ps(out, 0x3FF, _mm512_permutexvar_ps(order, sums));
}

#elif defined(__AVX2__)

constexpr int kLanes = 8;

struct Mask {
  __m256 bits;
};

struct Float {
  __m256 v;
  Float() = default;
  inline __attribute__((always_inline)) Float(__m256 value) : v(value) {}
  inline __attribute__((always_inline)) Float(float value) : v(_mm256_set1_ps(value)) {}
};

DDPO3D_HD Float load(const float *p) { return _mm256_load_ps(p); }
DDPO3D_HD void store(float *p, Float a) { _mm256_store_ps(p, a.v); }
DDPO3D_HD Float operator+(Float a, Float b) { return _mm256_add_ps(a.v, b.v); }
DDPO3D_HD Float operator-(Float a, Float b) { return _mm256_sub_ps(a.v, b.v); }
DDPO3D_HD Float operator*(Float a, Float b) { return _mm256_mul_ps(a.v, b.v); }
DDPO3D_HD Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
DDPO3D_HD Float fnma(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a.v, b.v, c.v); }
DDPO3D_HD Float min(Float a, Float b) { return _mm256_min_ps(a.v, b.v); }
DDPO3D_HD Mask operator>=(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
DDPO3D_HD Mask operator<=(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
DDPO3D_HD Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.bits, b.bits)}; }
DDPO3D_HD Mask and_not(Mask a, Mask b) { return {_mm256_andnot_ps(b.bits, a.bits)}; }
DDPO3D_HD bool any(Mask a) { return _mm256_movemask_ps(a.bits) != 0; }
DDPO3D_HD Float select(Mask m, Float a, Float b) { return _mm256_blendv_ps(b.v, a.v, m.bits); }
DDPO3D_HD Mask greater(const int32_t *p, int32_t b) {
  const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i *>(p));
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(a, _mm256_set1_epi32(b)))};
}
DDPO3D_HD void store_where(Mask m, int32_t *p, int32_t value) {
  _mm256_maskstore_epi32(p, _mm256_castps_si256(m.bits), _mm256_set1_epi32(value));
}

DDPO3D_HD Float exp2_fast(Float a) {
  const __m256 low = _mm256_max_ps(a.v, _mm256_set1_ps(-126.0f));
  const __m256 n = _mm256_round_ps(low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 f = _mm256_sub_ps(low, n);
  __m256 p = _mm256_set1_ps(kExp2[5]);
  for (int i = 4; i >= 0; --i)
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2[i]));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

DDPO3D_HD Float reciprocal(Float a) { return _mm256_div_ps(_mm256_set1_ps(1.0f), a.v); }

// out[i] = the sum of v[i]'s lanes, i < 10.
DDPO3D_HD void store_sums(const Float (&v)[10], float *out) {
  const auto fold = [](__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  };
  _mm_storeu_ps(out, fold(v[0].v, v[1].v, v[2].v, v[3].v));
  _mm_storeu_ps(out + 4, fold(v[4].v, v[5].v, v[6].v, v[7].v));
  _mm_storel_pi(reinterpret_cast<__m64 *>(out + 8), fold(v[8].v, v[9].v, v[8].v, v[9].v));
}

#else

constexpr int kLanes = 4;

typedef float FloatLanes __attribute__((vector_size(16)));
typedef int32_t IntLanes __attribute__((vector_size(16)));

struct Mask {
  IntLanes bits; // 0 or -1
};

struct Float {
  FloatLanes v;
  Float() = default;
  inline __attribute__((always_inline)) Float(FloatLanes value) : v(value) {}
  inline __attribute__((always_inline)) Float(float value) : v{value, value, value, value} {}
};

DDPO3D_HD Float load(const float *p) { return *reinterpret_cast<const FloatLanes *>(p); }
DDPO3D_HD void store(float *p, Float a) { *reinterpret_cast<FloatLanes *>(p) = a.v; }
DDPO3D_HD Float operator+(Float a, Float b) { return a.v + b.v; }
DDPO3D_HD Float operator-(Float a, Float b) { return a.v - b.v; }
DDPO3D_HD Float operator*(Float a, Float b) { return a.v * b.v; }
DDPO3D_HD Float fma(Float a, Float b, Float c) { return a.v * b.v + c.v; }
DDPO3D_HD Float fnma(Float a, Float b, Float c) { return c.v - a.v * b.v; }
DDPO3D_HD Mask operator>=(Float a, Float b) { return {a.v >= b.v}; }
DDPO3D_HD Mask operator<=(Float a, Float b) { return {a.v <= b.v}; }
DDPO3D_HD Mask operator&(Mask a, Mask b) { return {a.bits & b.bits}; }
DDPO3D_HD Mask and_not(Mask a, Mask b) { return {a.bits & ~b.bits}; }
DDPO3D_HD bool any(Mask a) { return (a.bits[0] | a.bits[1] | a.bits[2] | a.bits[3]) != 0; }
DDPO3D_HD Float select(Mask m, Float a, Float b) {
  return (FloatLanes)(((IntLanes)a.v & m.bits) | ((IntLanes)b.v & ~m.bits));
}
DDPO3D_HD Float min(Float a, Float b) { return select(a <= b, a, b); }
DDPO3D_HD Mask greater(const int32_t *p, int32_t b) { return {*reinterpret_cast<const IntLanes *>(p) > b}; }
DDPO3D_HD void store_where(Mask m, int32_t *p, int32_t value) {
  IntLanes &target = *reinterpret_cast<IntLanes *>(p);
  target = (m.bits & value) | (~m.bits & target);
}

DDPO3D_HD Float exp2_fast(Float a) {
  const Float low = select(a >= Float(-126.0f), a, Float(-126.0f));
  const FloatLanes magic = Float(12582912.0f).v; // 1.5 · 2^23: adding it rounds to the nearest integer
  const FloatLanes shifted = low.v + magic;
  const FloatLanes f = low.v - (shifted - magic);
  FloatLanes p = Float(kExp2[5]).v;
  for (int i = 4; i >= 0; --i)
    p = p * f + kExp2[i];
  return (FloatLanes)((IntLanes)p + (((IntLanes)shifted - (IntLanes)magic) << 23));
}

DDPO3D_HD Float reciprocal(Float a) { return 1.0f / a.v; }

// out[i] = the sum of v[i]'s lanes, i < 10.
DDPO3D_HD void store_sums(const Float (&v)[10], float *out) {
  for (int i = 0; i < 10; ++i)
    out[i] = (v[i].v[0] + v[i].v[2]) + (v[i].v[1] + v[i].v[3]);
}

#endif

} // namespace DDPO3D_SIMD_VARIANT
} // namespace ddpo3d_fast
