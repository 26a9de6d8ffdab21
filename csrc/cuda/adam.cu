// CUDA backend of Adam: up to eight groups of parameters in one launch, four elements a thread.
#include "ddpo3d_fast/adam.h"

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../maths/adam.h"
#include "launch.cuh"

namespace ddpo3d_fast {
namespace {

constexpr int threads = 256;

struct Group {
  AdamParams params;
  AdamStep step;        // of params.step
  int64_t total;        // elements
  unsigned first_block; // the group's blocks follow those of the group before it
  bool aligned;         // four elements are one load or store
};

struct Groups {
  Group group[max_adam_groups];
  int count;
};

// `count` elements from `first` on, in one access of 128 bits where `vectorized`.
__device__ __forceinline__ void load(const float *data, int count, bool vectorized, float (&x)[4]) {
  if (vectorized) {
    const float4 four = *reinterpret_cast<const float4 *>(data);
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
  } else {
    for (int j = 0; j < 4; ++j)
      x[j] = j < count ? data[j] : 0.f;
  }
}

__device__ __forceinline__ void store(float *data, int count, bool vectorized, const float (&x)[4]) {
  if (vectorized) {
    *reinterpret_cast<float4 *>(data) = make_float4(x[0], x[1], x[2], x[3]);
  } else {
    for (int j = 0; j < 4; ++j)
      if (j < count)
        data[j] = x[j];
  }
}

__global__ void __launch_bounds__(threads, 4) adam_kernel(Groups groups, AdamDeviceValues device_values) {
  await_previous_kernels();
  DDPO3D_SHARED(AdamStep, step_on_device);
  if (device_values.skip && *device_values.skip)
    return;

  int mine = 0;
  while (mine + 1 < groups.count && blockIdx.x >= groups.group[mine + 1].first_block)
    ++mine;
  const Group &group = groups.group[mine];
  const AdamParams &p = group.params;

  const int64_t first = 4 * (int64_t(blockIdx.x - group.first_block) * threads + threadIdx.x);
  const int64_t left = group.total - first;
  const int count = left >= 4 ? 4 : left > 0 ? int(left) : 0;
  const bool vectorized = group.aligned && count == 4;
  float param[4], grad[4], exp_avg[4], exp_avg_sq[4];
  load(p.param + first, count, vectorized, param);
  load(p.grad + first, count, vectorized, grad);
  load(p.exp_avg + first, count, vectorized, exp_avg);
  load(p.exp_avg_sq + first, count, vectorized, exp_avg_sq);

  AdamStep step = group.step;
  if (device_values.step) {
    if (threadIdx.x == 0)
      step_on_device = adam_step(*device_values.step, p.beta1, p.beta2, p.epsilon);
    __syncthreads();
    step = step_on_device;
  }
  if (count == 0)
    return;

  const float *const scales = device_values.rate_scales;
  const float scale = scales ? scales[mine * device_values.rate_scale_stride] : 1.f;
  float rate = p.learning_rate;
  int64_t row = 0, column = 0;
  if (p.row_learning_rates) {
    row = first / p.columns;
    column = first % p.columns;
    rate = p.row_learning_rates[row];
  }
  for (int j = 0; j < 4; ++j) {
    adam_update(step, rate * scale, grad[j], param[j], exp_avg[j], exp_avg_sq[j]);
    if (p.row_learning_rates && j + 1 < count && ++column == p.columns) {
      column = 0;
      rate = p.row_learning_rates[++row];
    }
  }

  store(p.param + first, count, vectorized, param);
  store(p.exp_avg + first, count, vectorized, exp_avg);
  store(p.exp_avg_sq + first, count, vectorized, exp_avg_sq);
}

bool aligned(const float *address) { return reinterpret_cast<uintptr_t>(address) % sizeof(float4) == 0; }

} // namespace

void adam_cuda(const AdamParams *groups, int count, const AdamDeviceValues &device_values,
               void *cuda_stream) {
  if (count > max_adam_groups)
    throw std::invalid_argument("groups: expected at most " + std::to_string(max_adam_groups) + ", got " +
                                std::to_string(count));
  Groups all{};
  all.count = count;
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) {
    const AdamParams &p = groups[i];
    Group &group = all.group[i];
    group.params = p;
    group.step = adam_step(p.step, p.beta1, p.beta2, p.epsilon);
    group.total = p.rows * p.columns;
    group.first_block = unsigned(blocks);
    group.aligned = aligned(p.param) && aligned(p.grad) && aligned(p.exp_avg) && aligned(p.exp_avg_sq);
    blocks += (group.total + 4 * threads - 1) / (4 * threads);
  }
  launch_early("adam", adam_kernel, dim3(unsigned(blocks)), dim3(threads), 0,
               static_cast<cudaStream_t>(cuda_stream), all, device_values);
}

} // namespace ddpo3d_fast
