// The kernels of kernels_under_test.h. nvcc compiles them as well, so that the emulator cannot offer what
// CUDA does not have.
#include "kernels_under_test.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/launch.cuh"

static_assert(alignof(float2) == 8 && alignof(float3) == 4 && alignof(float4) == 16, "");
static_assert(alignof(uint2) == 8 && alignof(uint4) == 16 && alignof(uchar4) == 4 && alignof(ushort4) == 8,
              "");
static_assert(alignof(double2) == 16 && sizeof(float3) == 12 && alignof(ulonglong2) == 16, "");
static_assert(sizeof(__half) == 2 && sizeof(__nv_bfloat16) == 2, "");

namespace under_test {
namespace {

using ddpo3d_fast::launch;

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int tile = 16;

__device__ int thread_index() {
  return int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

__global__ void matmul_kernel(const float *a, const float *b, float *c, int n, MatmulBug bug) {
  DDPO3D_SHARED(float[tile][tile], tile_a);
  DDPO3D_SHARED(float[tile][tile], tile_b);
  const int x = threadIdx.x, y = threadIdx.y;
  const int row = blockIdx.y * tile + y, column = blockIdx.x * tile + x;
  float sum = 0;
  for (int k = 0; k < n; k += tile) {
    tile_a[y][x] = a[row * n + k + x];
    tile_b[y][x] = b[(k + y) * n + column];
    if (bug != MatmulBug::no_barrier_after_load)
      __syncthreads();
    for (int i = 0; i < tile; i++)
      sum += tile_a[y][i] * tile_b[i][x];
    if (bug != MatmulBug::no_barrier_before_next_load)
      __syncthreads();
  }
  c[row * n + column] = sum;
}

__device__ int warp_sum(int value) {
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(all_lanes, value, offset);
  return value;
}

__global__ void sum_kernel(const int *values, int n, int *sums, SumBug bug) {
  DDPO3D_SHARED_DYNAMIC(int, warp_sums);
  const int t = threadIdx.x, first = blockIdx.x * blockDim.x + t;
  int sum = 0, positive = 0;
  for (int i = first; i - t < n; i += gridDim.x * blockDim.x) { // a warp stays together
    const int value = i < n ? values[i] : 0;
    sum += value;
    positive += __popc(__ballot_sync(all_lanes, value > 0));
  }
  if (t % 32 == 0)
    atomicAdd(&sums[1], positive);
  sum = warp_sum(sum);
  if (t % 32 == 0)
    warp_sums[t / 32] = sum;
  if (bug != SumBug::no_barrier)
    __syncthreads();
  if (t >= 32)
    return;
  const int total = warp_sum(t < int(blockDim.x / 32) ? warp_sums[t] : 0);
  if (t == 0)
    atomicAdd(&sums[0], total);
}

__global__ void exchange_kernel(const int *in, int *out, ExchangeBug bug) {
  DDPO3D_SHARED(int[1024], values);
  const int t = threadIdx.x;
  values[t] = in[t];
  if (bug != ExchangeBug::no_syncwarp_before_read)
    __syncwarp();
  const int neighbour = values[t ^ 1];
  if (bug != ExchangeBug::no_syncwarp_after_read)
    __syncwarp();
  values[t] = 2 * in[t];
  __syncwarp();
  out[t] = neighbour + values[t ^ 2];
}

__global__ void sum_by_last_block_kernel(const float *values, int n, float *block_sums, unsigned *counter,
                                         float *out) {
  DDPO3D_SHARED(float[64], partial);
  DDPO3D_SHARED(bool, last);
  const int t = threadIdx.x, i = blockIdx.x * 64 + t;
  partial[t] = i < n ? values[i] : 0.0f;
  for (int half = 32; half > 0; half /= 2) {
    __syncthreads();
    if (t < half)
      partial[t] += partial[t + half];
  }
  if (t == 0) {
    block_sums[blockIdx.x] = partial[0];
    __threadfence();
    last = atomicAdd(counter, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last || t != 0)
    return;
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; b++)
    sum += block_sums[b];
  *out = sum;
}

__global__ void hand_on_kernel(unsigned *tickets, unsigned *token, unsigned *out) {
  if (threadIdx.x == 1) {
    const unsigned ticket = atomicAdd(tickets, 1);
    while (atomicAdd(token, 0) != ticket)
      ;
    out[ticket] = ticket;
    __threadfence();
    atomicExch(token, ticket + 1);
  }
  __syncthreads();
}

__global__ void chain_kernel(int *values) {
  if (threadIdx.x == 0)
    values[blockIdx.x + 1] = values[blockIdx.x] + 1;
}

__global__ void lost_update_kernel(unsigned *total, int rounds) {
  DDPO3D_SHARED(unsigned, old);
  for (int i = 0; i < rounds; i++) {
    if (threadIdx.x == 0)
      old = *total;
    __syncthreads();
    if (threadIdx.x == 0)
      *total = old + 1;
    __syncthreads();
  }
}

__global__ void fault_kernel(Fault fault, unsigned *flag) {
  const int t = thread_index();
  switch (fault) {
  case Fault::deadlock:
    if (t < 7)
      __syncthreads();
    else
      __syncwarp();
    break;
  case Fault::divergent_barriers:
    if (t < 7)
      __syncthreads();
    else
      __syncthreads();
    break;
  case Fault::barrier_in_branch:
    if (t != 3)
      __syncthreads();
    __syncthreads();
    break;
  case Fault::not_in_mask:
    __syncwarp(0x0000ffffu);
    break;
  case Fault::different_warp_ops:
    if (t % 2)
      __ballot_sync(all_lanes, 1);
    else
      __shfl_sync(all_lanes, t, 0);
    break;
  case Fault::different_masks:
    __syncwarp(t % 2 ? all_lanes : 0x7fffffffu);
    break;
  case Fault::lane_missing:
    if (t == 5)
      __syncthreads();
    else
      __shfl_sync(all_lanes, t, 0);
    break;
  case Fault::bad_width:
    __shfl_sync(all_lanes, t, 0, 5);
    break;
  case Fault::endless_wait:
    while (atomicAdd(flag, 0) == 0)
      ;
    break;
  case Fault::trap:
    __trap();
    break;
  case Fault::too_much_shared:
    break; // nvcc does not compile it: below
  }
}

#ifdef DDPO3D_SIMT
__global__ void too_much_shared_kernel() {
  DDPO3D_SHARED(float[16384], values);
  values[threadIdx.x] = 0.0f;
}
#endif

__global__ void out_of_bounds_kernel(OutOfBounds where, float *values, int n) {
  DDPO3D_SHARED(float[32], fixed);
  DDPO3D_SHARED(float[32], behind); // an allocation of its own: what is past `fixed` is not it
  DDPO3D_SHARED_DYNAMIC(float, dynamic);
  const int t = threadIdx.x;
  fixed[t] = behind[t] = dynamic[t] = values[t];
  __syncthreads();
  switch (where) {
  case OutOfBounds::none:
    break;
  case OutOfBounds::static_array:
    values[t] = fixed[t + 1];
    break;
  case OutOfBounds::static_shared: {
    const float *pointer = fixed;
    values[t] = pointer[t + 1];
    break;
  }
  case OutOfBounds::dynamic_shared:
    dynamic[t + 1] = 1.0f;
    break;
  case OutOfBounds::global_read:
    fixed[t] = values[n - 31 + t];
    break;
  case OutOfBounds::global_write:
    values[n - 31 + t] = 1.0f;
    break;
  case OutOfBounds::misaligned:
    fixed[t] = reinterpret_cast<const float4 *>(values + 1)->x;
    break;
  }
  __syncthreads();
  values[t] = fixed[t] + behind[t] + dynamic[t];
}

__global__ void warp_operations_kernel(const double *values, double *out, int width) {
  const int t = threadIdx.x;
  const double value = values[t];
  double *mine = out + 8 * t;
  mine[0] = __shfl_sync(all_lanes, value, 3, width);
  mine[1] = __shfl_up_sync(all_lanes, float(value), 2, width);
  mine[2] = __shfl_down_sync(all_lanes, (long long)value, 3, width);
  mine[3] = __shfl_xor_sync(all_lanes, int(value), 5, width);
  mine[4] = __ballot_sync(all_lanes, value > 10);
  mine[5] = __any_sync(all_lanes, value > 1000);
  mine[6] = __all_sync(all_lanes, value < 1000);
  mine[7] = -1;
  if (t % 3 == 0) // a part of the warp, with the first lane's number of it
    mine[7] = __shfl_sync(0x49249249u, unsigned(t), 30 - width);
}

__global__ void partial_warp_kernel(unsigned *out) {
  const unsigned t = threadIdx.x;
  if (t >= 20)
    return;
  unsigned *mine = out + 4 * t;
  mine[0] = __ballot_sync(all_lanes, 1);
  mine[1] = __all_sync(all_lanes, 1);
  mine[2] = __shfl_down_sync(all_lanes, t, 4);
  if (t == 0) {
    mine[3] = __shfl_sync(0x3u, 10u, 1);
  } else if (t == 1) {
    const unsigned first = __shfl_sync(0x6u, 11u, 2);
    mine[3] = 100 * first + __shfl_sync(0x3u, 12u, 0);
  } else if (t == 2) {
    mine[3] = __shfl_sync(0x6u, 13u, 1);
  }
}

__global__ void block_votes_kernel(const int *predicates, int *out) {
  const int t = threadIdx.x, predicate = predicates[t];
  out[4 * t] = __syncthreads_count(predicate);
  out[4 * t + 1] = __syncthreads_and(predicate) != 0;
  out[4 * t + 2] = __syncthreads_or(predicate) != 0;
  if (t % 2)
    return;
  out[4 * t + 3] = __syncthreads_count(predicate);
}

__global__ void indices_kernel(int *out) {
  const int block = int(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
  const int i = block * int(blockDim.x * blockDim.y * blockDim.z) + thread_index();
  out[i] += i;
}

__global__ void uninitialised_kernel(unsigned *out) {
  DDPO3D_SHARED(unsigned[3], fixed);
  DDPO3D_SHARED_DYNAMIC(unsigned, dynamic);
  if (blockIdx.x == 1) {
    out[0] = fixed[2];
    out[1] = dynamic[threadIdx.x];
  }
  __syncthreads();
  fixed[2] = dynamic[threadIdx.x] = 7;
}

__global__ void atomics_kernel(unsigned *out, unsigned long long *wide) {
  const unsigned t = threadIdx.x;
  atomicAdd(&out[0], t);
  atomicSub(&out[1], t);
  atomicMax(&out[2], t);
  atomicMin(&out[3], t);
  atomicAnd(&out[4], ~(1u << t % 32));
  atomicOr(&out[5], 1u << t % 32);
  atomicXor(&out[6], 1u << t % 32);
  atomicExch(&out[7], 5u);
  atomicCAS(&out[8], t, t + 1); // counts on only if the threads come in order
  atomicMax(reinterpret_cast<int *>(&out[9]), -int(t) - 1);
  unsigned old = out[10], seen; // a product, which CUDA has no atomic for
  do {
    seen = old;
    old = atomicCAS(&out[10], seen, seen * 3);
  } while (old != seen);
  atomicAdd(&wide[0], (unsigned long long)t << 32);
  atomicMax(&wide[1], (unsigned long long)t << 40);
}

__global__ void half_to_float_kernel(const uint16_t *half, float *out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    out[i] = __half2float(__ushort_as_half(half[i]));
}

__global__ void float_to_half_kernel(const float *in, uint16_t *out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    out[i] = __half_as_ushort(__float2half(in[i]));
}

__global__ void bfloat16_to_float_kernel(const uint16_t *bfloat16, float *out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    out[i] = __bfloat162float(__ushort_as_bfloat16(bfloat16[i]));
}

__global__ void float_to_bfloat16_kernel(const float *in, uint16_t *out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    out[i] = __bfloat16_as_ushort(__float2bfloat16(in[i]));
}

template <int> __global__ void empty_kernel() {}

dim3 shape(const unsigned size[3]) { return {size[0], size[1], size[2]}; }

} // namespace

void matmul(const float *a, const float *b, float *c, int n, MatmulBug bug) {
  launch("matmul", matmul_kernel, dim3(n / tile, n / tile), dim3(tile, tile), 0, nullptr, a, b, c, n, bug);
}

void sum(const int *values, int n, int *sums, int blocks, int threads, SumBug bug) {
  launch("sum", sum_kernel, blocks, threads, threads / 32 * sizeof(int), nullptr, values, n, sums, bug);
}

void exchange(const int *in, int *out, int n, ExchangeBug bug) {
  launch("exchange", exchange_kernel, 1, n, 0, nullptr, in, out, bug);
}

void sum_by_last_block(const float *values, int n, float *block_sums, unsigned *counter, float *out) {
  launch("sum_by_last_block", sum_by_last_block_kernel, (n + 63) / 64, 64, 0, nullptr, values, n, block_sums,
         counter, out);
}

void hand_on(unsigned *tickets, unsigned *token, unsigned *out, int blocks) {
  launch("hand_on", hand_on_kernel, blocks, 64, 0, nullptr, tickets, token, out);
}

void chain(int *values, int blocks) { launch("chain", chain_kernel, blocks, 32, 0, nullptr, values); }

void lost_update(unsigned *total, int blocks, int rounds) {
  launch("lost_update", lost_update_kernel, blocks, 32, 0, nullptr, total, rounds);
}

void fault(Fault fault, int blocks, int threads) {
  unsigned flag = 0;
#ifdef DDPO3D_SIMT
  if (fault == Fault::too_much_shared)
    return launch("too_much_shared", too_much_shared_kernel, blocks, threads, 0, nullptr);
#endif
  launch("fault", fault_kernel, blocks, threads, 0, nullptr, fault, &flag);
}

void out_of_bounds(OutOfBounds where, float *values, int n) {
  launch("out_of_bounds", out_of_bounds_kernel, 1, 32, 32 * sizeof(float), nullptr, where, values, n);
}

void warp_operations(const double *values, double *out, int width) {
  launch("warp_operations", warp_operations_kernel, 1, 32, 0, nullptr, values, out, width);
}

void partial_warp(unsigned *out) { launch("partial_warp", partial_warp_kernel, 1, 26, 0, nullptr, out); }

void block_votes(const int *predicates, int *out, int threads) {
  launch("block_votes", block_votes_kernel, 1, threads, 0, nullptr, predicates, out);
}

void indices(int *out, const unsigned grid[3], const unsigned block[3]) {
  launch("indices", indices_kernel, shape(grid), shape(block), 0, nullptr, out);
}

void uninitialised(unsigned *out) {
  launch("uninitialised", uninitialised_kernel, 2, 1, sizeof(unsigned), nullptr, out);
}

void atomics(unsigned *out, unsigned long long *wide, int threads) {
  launch("atomics", atomics_kernel, 1, threads, 0, nullptr, out, wide);
}

void half_to_float(const uint16_t *half, float *out, int n) {
  launch("half_to_float", half_to_float_kernel, 1, 32, 0, nullptr, half, out, n);
}

void float_to_half(const float *in, uint16_t *out, int n) {
  launch("float_to_half", float_to_half_kernel, 1, 32, 0, nullptr, in, out, n);
}

void bfloat16_to_float(const uint16_t *bfloat16, float *out, int n) {
  launch("bfloat16_to_float", bfloat16_to_float_kernel, 1, 32, 0, nullptr, bfloat16, out, n);
}

void float_to_bfloat16(const float *in, uint16_t *out, int n) {
  launch("float_to_bfloat16", float_to_bfloat16_kernel, 1, 32, 0, nullptr, in, out, n);
}

void sizes(const unsigned grid[3], const unsigned block[3], size_t dynamic_shared_bytes, bool allow_shared) {
  // Two kernels, since what one has been allowed stays allowed.
  const auto kernel = allow_shared ? empty_kernel<1> : empty_kernel<0>;
  if (allow_shared && cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           int(dynamic_shared_bytes)) != cudaSuccess)
    throw std::runtime_error(std::string("cudaFuncSetAttribute: ") + cudaGetErrorString(cudaGetLastError()));
  launch("sizes", kernel, shape(grid), shape(block), dynamic_shared_bytes, nullptr);
}

void runtime_calls(unsigned *out, int byte) {
  void *memory = nullptr;
  if (cudaMalloc(&memory, 4) != cudaSuccess || cudaMemsetAsync(memory, byte, 4, nullptr) != cudaSuccess ||
      cudaMemcpyAsync(out, memory, 4, cudaMemcpyDeviceToHost, nullptr) != cudaSuccess ||
      cudaStreamSynchronize(nullptr) != cudaSuccess || cudaFree(memory) != cudaSuccess)
    throw std::runtime_error(cudaGetErrorString(cudaGetLastError()));
}

} // namespace under_test
