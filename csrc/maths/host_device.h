// The one macro that lets a formula compile for the host and, under nvcc, for the device.
#pragma once

// Internal linkage and always inlined on the host: the CPU backend compiles these headers once for each SIMD
// variant, and the linker must not merge code that was made for different processors.
#if defined(__CUDACC__)
#define DDPO3D_HD static __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define DDPO3D_HD static inline __attribute__((always_inline, unused))
#else
#define DDPO3D_HD static inline
#endif
