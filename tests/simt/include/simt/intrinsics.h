// What CUDA adds to C's arithmetic, as far as kernels use it: bit counting, reinterpretation, min, max.
#pragma once

#include <cmath>
#include <cstring>
#include <math.h>

#include "types.h"

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }

namespace simt {
template <class To, class From> To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
} // namespace simt

inline unsigned __float_as_uint(float x) { return simt::reinterpret<unsigned>(x); }
inline float __int_as_float(int x) { return simt::reinterpret<float>(x); }
inline float __uint_as_float(unsigned x) { return simt::reinterpret<float>(x); }

template <class T> T __ldg(const T *address) { return *address; }

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
