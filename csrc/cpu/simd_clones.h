// Run-time choice of the instruction set for autovectorised loops.
// A function marked DDPO3D_SIMD_CLONES is compiled for AVX-512, AVX2 and the baseline, with everything it
// calls inlined into each, and the loader picks the best one that the processor has. The build forbids
// contraction to fused multiply-adds, so all of them compute the same bits.
#pragma once

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define DDPO3D_SIMD_CLONES                                                                                   \
  __attribute__((flatten, noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else // older compilers cannot dispatch on the levels
#define DDPO3D_SIMD_CLONES __attribute__((flatten, noinline, target_clones("avx512f", "avx2", "default")))
#endif
#elif defined(__GNUC__)
#define DDPO3D_SIMD_CLONES __attribute__((flatten, noinline))
#else
#define DDPO3D_SIMD_CLONES
#endif
