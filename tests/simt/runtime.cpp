// CUDA's runtime on the host: limits, errors, memory and counters.
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "simt/control.h"

namespace simt {
thread_local const char *launch_name = nullptr;

namespace {

std::mutex mutex; // of what follows
Counters counts;
std::map<const void *, size_t> dynamic_shared_limits; // of kernels that asked for more than 48 KB

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess)
    last_error = error;
  return error;
}

void count(int64_t Counters::*counter) {
  std::lock_guard<std::mutex> lock(mutex);
  counts.*counter += 1;
}

cudaError_t check(const cudaLaunchConfig_t &config, const void *kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (config.numAttrs != 0)
    return cudaErrorNotSupported;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0)
    return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || uint64_t(block.x) * block.y * block.z > 1024)
    return cudaErrorInvalidConfiguration;
  std::lock_guard<std::mutex> lock(mutex);
  const auto limit = dynamic_shared_limits.find(kernel);
  if (config.dynamicSmemBytes > (limit == dynamic_shared_limits.end() ? 48 << 10 : limit->second))
    return cudaErrorInvalidValue;
  return cudaSuccess;
}

} // namespace

Counters counters() {
  std::lock_guard<std::mutex> lock(mutex);
  return counts;
}

void reset_counters() {
  std::lock_guard<std::mutex> lock(mutex);
  counts = {};
}

cudaError_t launch(const cudaLaunchConfig_t &config, const void *kernel, void (*body)(const void *call),
                   const void *call) {
  const char *name = launch_name ? launch_name : "(unnamed kernel)";
  launch_name = nullptr;
  if (const cudaError_t error = check(config, kernel))
    return returned(error);
  {
    std::lock_guard<std::mutex> lock(mutex);
    counts.launches.push_back(name);
  }
  run({name, config.gridDim, config.blockDim, config.dynamicSmemBytes, body, call});
  return cudaSuccess;
}

} // namespace simt

using simt::Counters;

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
  case cudaSuccess:
    return "no error";
  case cudaErrorInvalidValue:
    return "invalid argument";
  case cudaErrorMemoryAllocation:
    return "out of memory";
  case cudaErrorInvalidConfiguration:
    return "invalid configuration argument";
  case cudaErrorNotSupported:
    return "operation not supported";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = simt::last_error;
  simt::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return simt::last_error; }

cudaError_t cudaMalloc(void **address, size_t bytes) {
  simt::count(&Counters::allocations);
  *address = bytes ? std::malloc(bytes) : nullptr;
  return simt::returned(*address || !bytes ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t) { return cudaMalloc(address, bytes); }

cudaError_t cudaFree(void *address) {
  std::free(address);
  return cudaSuccess;
}

cudaError_t cudaFreeAsync(void *address, cudaStream_t) { return cudaFree(address); }

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  simt::count(&Counters::copies);
  if (bytes)
    std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaMemset(void *address, int byte, size_t bytes) {
  simt::count(&Counters::memsets);
  if (bytes)
    std::memset(address, byte, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *address, int byte, size_t bytes, cudaStream_t) {
  return cudaMemset(address, byte, bytes);
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  simt::count(&Counters::synchronizations);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaStreamSynchronize(nullptr); }

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      size_t(value) > simt::max_shared_bytes)
    return simt::returned(cudaErrorInvalidValue);
  std::lock_guard<std::mutex> lock(simt::mutex);
  simt::dynamic_shared_limits[kernel] = size_t(value);
  return cudaSuccess;
}
