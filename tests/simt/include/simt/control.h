// What the tests set and read: the order of threads and blocks, and counters of what was called.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "execution.h"

namespace simt {

enum class BlockOrder {
  in_order,
  shuffled,
  interleaved, // shuffled, several alive at a time, switching at barriers, warp operations, atomics and
               // fences
};

// How all later launches run. Seed 0 runs the ready threads of a block in order; any other picks a random one
// at every switch. The same seed and the same launches after it give the same order again.
void set_order(uint64_t seed, BlockOrder blocks);

struct Counters {
  std::vector<std::string> launches; // names of the kernels
  int64_t synchronizations = 0;      // cudaStreamSynchronize, cudaDeviceSynchronize
  int64_t copies = 0;                // cudaMemcpy, cudaMemcpyAsync
  int64_t memsets = 0;               // cudaMemset, cudaMemsetAsync
  int64_t allocations = 0;           // cudaMalloc, cudaMallocAsync
};

Counters counters();
void reset_counters();

// Shared memory that a block can have on sm_80 and later: static, and all of it on sm_90.
constexpr size_t max_static_shared_bytes = 48 << 10;
constexpr size_t max_shared_bytes = 227 << 10;

struct Launch {
  const char *name; // of the kernel
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  void (*body)(const void *call); // one thread of the kernel
  const void *call;               // the kernel and its arguments
};

// Runs all threads of a launch. std::runtime_error in one line if a kernel does what the hardware forbids.
void run(const Launch &launch);

} // namespace simt
