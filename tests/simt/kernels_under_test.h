// Kernels for the emulator's own tests: right ones, and ones with a planted bug each. Arrays are "device"
// memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace under_test {

enum class MatmulBug : int { none, no_barrier_after_load, no_barrier_before_next_load };
enum class SumBug : int { none, no_barrier };
enum class ExchangeBug : int { none, no_syncwarp_before_read, no_syncwarp_after_read };
enum class Fault : int {
  deadlock,           // some threads at __syncthreads, the others at __syncwarp with all lanes
  divergent_barriers, // __syncthreads at two places
  barrier_in_branch,  // a thread passes by a barrier and waits at the next
  not_in_mask,        // a lane outside its own mask
  different_warp_ops, // lanes of a mask meet in a shuffle and a vote
  different_masks,    // lanes wait for each other with different masks
  lane_missing,       // a lane of the mask waits at a barrier instead
  bad_width,          // of a shuffle
  endless_wait,       // for a flag that nobody sets
  trap,
  too_much_shared, // 64 KB static
};
enum class OutOfBounds : int {
  none,
  static_array,
  static_shared,
  dynamic_shared,
  global_read,
  global_write,
  misaligned
};

// c = a b for n x n matrices, n a multiple of 16
void matmul(const float *a, const float *b, float *c, int n, MatmulBug bug);

// sums[0] = sum of the values, sums[1] = how many are positive
void sum(const int *values, int n, int *sums, int blocks, int threads, SumBug bug);

// out[i] = in[i ^ 1] + 2 in[i ^ 2], through shared memory, within warps; n a multiple of 32, at most 1024
void exchange(const int *in, int *out, int n, ExchangeBug bug);

// Sums `values` by blocks; the last block to finish adds the blocks' sums in order. `counter` is 0 before.
void sum_by_last_block(const float *values, int n, float *block_sums, unsigned *counter, float *out);

// Blocks hand a token on in the order in which they started, waiting for each other. out[i]: i-th ticket.
void hand_on(unsigned *tickets, unsigned *token, unsigned *out, int blocks);

// Planted dependences between the blocks of one launch.
void chain(int *values, int blocks);                       // values[b + 1] = values[b] + 1
void lost_update(unsigned *total, int blocks, int rounds); // adds without an atomic, a barrier in between

void fault(Fault fault, int blocks, int threads);
void out_of_bounds(OutOfBounds where, float *values, int n);

// out[8 lane + j]: what the lane got from the j-th of eight warp operations on `values`, one warp
void warp_operations(const double *values, double *out, int width);
// out[4 t + j], 26 threads of which the last 6 leave at once: __ballot_sync, __all_sync and __shfl_down_sync
// by 4 of all lanes; what lanes 0 to 2 got when lane 1 first exchanged with lane 2, then with lane 0
void partial_warp(unsigned *out);
// out[4 t + j]: __syncthreads_count, _and, _or of the predicates, and the count again after half have left
void block_votes(const int *predicates, int *out, int threads);
// out[i] = i for all linear indices of a 3D launch
void indices(int *out, const unsigned grid[3], const unsigned block[3]);
// out[0]: bits of uninitialised shared memory, static; out[1]: dynamic
void uninitialised(unsigned *out);
// out[0 .. 12]: each integer atomic's effect on out[i], from what is there
void atomics(unsigned *out, unsigned long long *wide, int threads);

void half_to_float(const uint16_t *half, float *out, int n);
void float_to_half(const float *in, uint16_t *out, int n);
void bfloat16_to_float(const uint16_t *bfloat16, float *out, int n);
void float_to_bfloat16(const float *in, uint16_t *out, int n);

// A launch of an empty kernel; shared memory above 48 KB is asked for if `allow_shared`.
void sizes(const unsigned grid[3], const unsigned block[3], size_t dynamic_shared_bytes, bool allow_shared);
// cudaMalloc, cudaMemsetAsync to `byte`, cudaMemcpyAsync to `out`, cudaStreamSynchronize, cudaFree; 4 bytes
void runtime_calls(unsigned *out, int byte);

} // namespace under_test
