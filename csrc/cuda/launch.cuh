// How kernels are launched and how they name shared memory, under nvcc and under the SIMT host emulator of
// tests/simt/, which defines DDPO3D_SIMT.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

// DDPO3D_SHARED(float[64], name): a block's own float name[64]; each use is an allocation of its own.
// DDPO3D_SHARED_DYNAMIC(float, name): float *name, the launch's dynamic_shared_bytes, 16-byte aligned; every
// use in a kernel points at the same bytes.
// Both are uninitialised, and the emulator fills them with 0xFF bytes.
#ifdef DDPO3D_SIMT
#define DDPO3D_SHARED(type, name)                                                                            \
  using name##_shared_type = type;                                                                           \
  static char name##_shared_key;                                                                             \
  name##_shared_type &name = simt::shared<name##_shared_type>(&name##_shared_key)
#define DDPO3D_SHARED_DYNAMIC(type, name) type *name = static_cast<type *>(simt::dynamic_shared())
#else
#define DDPO3D_SHARED(type, name)                                                                            \
  using name##_shared_type = type;                                                                           \
  __shared__ name##_shared_type name
#define DDPO3D_SHARED_DYNAMIC(type, name)                                                                    \
  extern __shared__ __align__(16) unsigned char ddpo3d_dynamic_shared[];                                     \
  type *name = reinterpret_cast<type *>(ddpo3d_dynamic_shared)
#endif

namespace ddpo3d_fast {

// Launches kernel(args...) on the stream; an empty grid launches nothing. `name` is what errors and the
// emulator's counters call the kernel. More than 48 KB of dynamic shared memory must have been allowed with
// cudaFuncSetAttribute. std::runtime_error with the name and the sizes when CUDA refuses the launch.
template <class... P, class... A>
void launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared_bytes,
            cudaStream_t stream, A &&...args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0)
    return;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared_bytes;
  config.stream = stream;
#ifdef DDPO3D_SIMT
  simt::launch_name = name;
#endif
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
  if (error == cudaSuccess)
    return;
  cudaGetLastError(); // it has been reported: the next one who asks must not find it
  const auto sizes = [](dim3 d) {
    return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
  };
  throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error) + " (grid " + sizes(grid) +
                           ", block " + sizes(block) + ", " + std::to_string(dynamic_shared_bytes) +
                           " bytes shared)");
}

} // namespace ddpo3d_fast
