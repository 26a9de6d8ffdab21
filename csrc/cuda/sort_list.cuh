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

// The same of `size` sorted keys, a power of two, without a branch.
template <int size> __device__ inline uint32_t rank_in(const uint64_t *sorted, uint64_t key) {
  uint32_t low = 0;
  for (uint32_t step = size / 2; step > 0; step /= 2)
    low += sorted[low + step - 1] < key ? step : 0;
  return low + (sorted[low] < key);
}

template <int threads, int capacity> struct alignas(16) SortMemory {
  uint64_t keys[2][threads]; // two chunks of the list, in sorted runs of a warp each
  uint64_t chunks[capacity]; // sorted, one after the other
};

// Sorts from[0..count) into to[0..count), both in global memory, by all `threads` threads of the block, a
// power of two. A warp sorts a run of 32 by counting, for every entry, how many of the others come first; the
// runs of a chunk, an entry a thread, and the chunks, up to `capacity` entries, are merged by searches: an
// entry's place is the sum of its ranks. Longer lists are merged back and forth between the two arrays. What
// is missing from a chunk counts as last. Ends with a barrier.
template <int threads, int capacity>
__device__ inline void sort_list(DeviceEntry *from, DeviceEntry *to, int32_t count,
                                 SortMemory<threads, capacity> &memory) {
  static_assert((threads & (threads - 1)) == 0 && capacity % threads == 0, "");
  constexpr uint64_t none = ~0ull;
  const int t = threadIdx.x, lane = t % kWarp;
#pragma unroll 1
  for (int32_t begin = 0; begin < count; begin += capacity) {
    const int32_t m = count - begin < capacity ? count - begin : capacity;
#pragma unroll 1
    for (int32_t chunk = 0; chunk < m; chunk += threads) {
      const bool exists = chunk + t < m;
      DeviceEntry entry = {};
      if (exists)
        entry = from[begin + chunk + t];
      const uint64_t key = exists ? sort_key(entry) : none;
      // By turns, so that no warp writes where another one still searches.
      uint64_t *const keys = memory.keys[chunk / threads % 2], *const run = keys + t / kWarp * kWarp;
      run[lane] = key;
      __syncwarp();
      uint32_t place = 0;
      for (int i = 0; i < kWarp; i += 2) {
        const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(run + i);
        place += uint32_t(pair.x < key) + uint32_t(pair.y < key);
      }
      __syncwarp();
      run[exists ? place : lane] = key;
      __syncthreads();
      place = 0;
      for (int other = 0; other < threads; other += kWarp)
        place += rank_in<kWarp>(keys + other, key);
      if (m > threads)
        memory.chunks[chunk + (exists ? place : t)] = key;
      else if (exists)
        to[begin + place] = entry;
    }
    __syncthreads();
    if (m <= threads)
      continue;
#pragma unroll 1
    for (int32_t i = t; i < m; i += threads) {
      const DeviceEntry entry = from[begin + i];
      uint32_t place = 0;
      for (int32_t chunk = 0; chunk < m; chunk += threads)
        place += rank_in<threads>(memory.chunks + chunk, sort_key(entry));
      to[begin + place] = entry;
    }
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
