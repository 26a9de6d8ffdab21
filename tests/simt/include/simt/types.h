// CUDA's keywords and vector types, with their alignment.
#pragma once

#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __noinline__ // not an attribute: libstdc++ writes __attribute__((__noinline__))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static_assert(false, "shared memory is named through DDPO3D_SHARED of launch.cuh");

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// `bytes` is what CUDA aligns the vector to.
#define SIMT_VECTORS(type, name, align1, align2, align4)                                                     \
  struct alignas(align1) name##1 { type x; };                                                                \
  struct alignas(align2) name##2 { type x, y; };                                                             \
  struct alignas(align1) name##3 { type x, y, z; };                                                          \
  struct alignas(align4) name##4 { type x, y, z, w; };                                                       \
  inline name##1 make_##name##1(type x) { return {x}; }                                                      \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                           \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                                \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

SIMT_VECTORS(signed char, char, 1, 2, 4)
SIMT_VECTORS(unsigned char, uchar, 1, 2, 4)
SIMT_VECTORS(short, short, 2, 4, 8)
SIMT_VECTORS(unsigned short, ushort, 2, 4, 8)
SIMT_VECTORS(int, int, 4, 8, 16)
SIMT_VECTORS(unsigned, uint, 4, 8, 16)
SIMT_VECTORS(long long, longlong, 8, 16, 16)
SIMT_VECTORS(unsigned long long, ulonglong, 8, 16, 16)
SIMT_VECTORS(float, float, 4, 8, 16)
SIMT_VECTORS(double, double, 8, 16, 16)
#undef SIMT_VECTORS
