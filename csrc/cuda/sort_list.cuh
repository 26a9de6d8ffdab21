// A block sorts its tile's list front to back.
#pragma once

#include "launch.cuh"
#include "rasterizer_state.cuh"

namespace ddpo3d_fast {

// Nearest first, equal depths by number: unique, so the order does not depend on how the list came to be.
__device__ inline uint64_t sort_key(const DeviceEntry &entry) {
  return uint64_t(entry.depth_bits) << 32 | entry.gaussian;
}

// How many of the `count` sorted entries come before `key`.
__device__ inline uint32_t rank_in(const DeviceEntry *sorted, uint32_t count, uint64_t key) {
  uint32_t low = 0, high = count;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (sort_key(sorted[middle]) < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Sorts from[0..count) into to[0..count), both in global memory, by all `threads` threads of the block: runs
// of `capacity` in shared memory (bitonic), longer lists by merging runs back and forth between the two
// arrays, every entry finding its place by a binary search. Ends with a barrier.
template <int threads, int capacity>
__device__ inline void sort_list(DeviceEntry *from, DeviceEntry *to, int32_t count) {
  static_assert((capacity & (capacity - 1)) == 0 && capacity <= 1 << 16, "");
  DDPO3D_SHARED(uint64_t[capacity], keys);
  DDPO3D_SHARED(uint16_t[capacity], places);
  const int t = threadIdx.x;
  for (int32_t begin = 0; begin < count; begin += capacity) {
    const int32_t m = count - begin < capacity ? count - begin : capacity;
    int32_t padded = 2;
    while (padded < m)
      padded *= 2;
#pragma unroll 1
    for (int32_t i = t; i < padded; i += threads) {
      keys[i] = i < m ? sort_key(from[begin + i]) : ~0ull;
      places[i] = uint16_t(i);
    }
    __syncthreads();
    for (int32_t size = 2; size <= padded; size *= 2)
      for (int32_t stride = size / 2; stride > 0; stride /= 2) {
#pragma unroll 1
        for (int32_t i = t; i < padded / 2; i += threads) {
          const int32_t a = 2 * i - (i & (stride - 1)), b = a + stride;
          const bool ascending = (a & size) == 0;
          const uint64_t key_a = keys[a], key_b = keys[b];
          if ((key_a > key_b) == ascending) {
            const uint16_t place = places[a];
            keys[a] = key_b;
            keys[b] = key_a;
            places[a] = places[b];
            places[b] = place;
          }
        }
        __syncthreads();
      }
#pragma unroll 1
    for (int32_t i = t; i < m; i += threads)
      to[begin + i] = from[begin + places[i]];
    __syncthreads();
  }

  DeviceEntry *runs = to, *merged = from;
  for (uint32_t run = capacity; run < uint32_t(count); run *= 2) {
#pragma unroll 1
    for (uint32_t i = t; i < uint32_t(count); i += threads) {
      const uint32_t pair = i & ~(2 * run - 1), in_second = i & run; // a power of two
      const uint32_t sibling = in_second ? pair : pair + run;
      const uint32_t left = uint32_t(count) > sibling ? uint32_t(count) - sibling : 0;
      const DeviceEntry entry = runs[i];
      merged[i - in_second + rank_in(runs + sibling, left < run ? left : run, sort_key(entry))] = entry;
    }
    __syncthreads();
    DeviceEntry *const swapped = runs;
    runs = merged;
    merged = swapped;
  }
  if (runs != to)
#pragma unroll 1
    for (int32_t i = t; i < count; i += threads)
      to[i] = runs[i];
  __syncthreads();
}

} // namespace ddpo3d_fast
