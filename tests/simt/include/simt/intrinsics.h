// Arithmetic that CUDA adds to C's: bit counting, reinterpretation, fast mathematics, min and max.
// The fast functions are computed precisely here.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <math.h>

#include "types.h"

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; bit++)
    reversed |= (x >> bit & 1u) << (31 - bit);
  return reversed;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

namespace simt {
template <class To, class From> To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
} // namespace simt

inline int __float_as_int(float x) { return simt::reinterpret<int>(x); }
inline unsigned __float_as_uint(float x) { return simt::reinterpret<unsigned>(x); }
inline float __int_as_float(int x) { return simt::reinterpret<float>(x); }
inline float __uint_as_float(unsigned x) { return simt::reinterpret<float>(x); }
inline long long __double_as_longlong(double x) { return simt::reinterpret<long long>(x); }
inline double __longlong_as_double(long long x) { return simt::reinterpret<double>(x); }

// From float to integer as CUDA has it: out of range gives the nearest integer there is, NaN gives 0.
namespace simt {
template <class Integer> Integer saturated(float x) {
  constexpr Integer least = std::numeric_limits<Integer>::min(), most = std::numeric_limits<Integer>::max();
  return x != x ? 0 : x <= float(least) ? least : x >= float(most) ? most : Integer(x);
}
} // namespace simt
inline int __float2int_rz(float x) { return simt::saturated<int>(x); }
inline int __float2int_rn(float x) { return simt::saturated<int>(nearbyintf(x)); }
inline int __float2int_rd(float x) { return simt::saturated<int>(floorf(x)); }
inline int __float2int_ru(float x) { return simt::saturated<int>(ceilf(x)); }
inline unsigned __float2uint_rz(float x) { return simt::saturated<unsigned>(x); }
inline unsigned __float2uint_rn(float x) { return simt::saturated<unsigned>(nearbyintf(x)); }
inline unsigned __float2uint_rd(float x) { return simt::saturated<unsigned>(floorf(x)); }
inline unsigned __float2uint_ru(float x) { return simt::saturated<unsigned>(ceilf(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }

inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; } // NaN gives 0

template <class T> T __ldg(const T *address) { return *address; }
template <class T> T __ldcs(const T *address) { return *address; }
template <class T> T __ldcg(const T *address) { return *address; }
template <class T> void __stcs(T *address, T value) { *address = value; }
template <class T> void __stcg(T *address, T value) { *address = value; }

// CUDA's min and max outside of namespace std. Floats: a NaN loses against a number.
#define SIMT_MIN_MAX(type)                                                                                   \
  inline type min(type a, type b) { return b < a ? b : a; }                                                  \
  inline type max(type a, type b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
