// A thread's view of its launch: its indices, barriers of the block, shared memory. scheduler.cpp runs it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "types.h"

namespace simt {

struct Block;
struct Stack;
struct Warp;

enum class Operation : uint8_t {
  syncthreads,
  syncthreads_count,
  syncthreads_and,
  syncthreads_or,
  syncwarp,
  shfl,
  shfl_up,
  shfl_down,
  shfl_xor,
  ballot,
  any,
  all,
};

// Where in the sources something was called. The functions that kernels call have it as a last argument with
// the default Place::here(), which is the caller's.
struct Place {
  const char *file;
  int line;
  static constexpr Place here(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

struct Thread {
  uint3 index;       // threadIdx
  uint3 block_index; // blockIdx
  unsigned lane;
  Block *block;
  Warp *warp;
  Stack *stack; // null before it runs for the first time

  // What it waits for at a barrier or a warp operation.
  Place place;
  Operation operation;
  uint8_t size;        // shuffles: bytes of the value
  uint8_t source_lane; // shuffles
  unsigned mask;       // warp operations
  uint64_t value;      // in: the value shuffled, or the predicate
  uint64_t result;
};

extern Thread *current; // the one that runs

// The name that the next launch of this host thread goes by; set by launch.cuh.
extern thread_local const char *launch_name;

// Waits for the block and returns the count, conjunction or disjunction of the predicates.
int wait_for_block(Operation operation, bool predicate, Place place);

// Waits for the lanes of the mask; see warp.h. Returns the shuffled bits or the vote.
uint64_t wait_for_warp(Operation operation, unsigned mask, uint64_t value, unsigned size,
                       unsigned source_lane, Place place);

// Lets other threads run now and then: called where another thread's work may become visible.
extern int steps_until_switch;
void switch_threads(Place place);
inline void maybe_switch(Place place) {
  if (--steps_until_switch <= 0)
    switch_threads(place);
}

[[noreturn]] void fail(const char *what, Place place);

// The block's shared memory of that key, made when its first thread asks.
void *shared_allocation(const void *key, size_t bytes, size_t alignment);
void *dynamic_shared();

template <class T> T &shared(const void *key) {
  static_assert(std::is_trivially_default_constructible_v<T> && std::is_trivially_destructible_v<T>,
                "shared memory is never constructed");
  return *static_cast<T *>(shared_allocation(key, sizeof(T), alignof(T)));
}

} // namespace simt

#define threadIdx (simt::current->index)
#define blockIdx (simt::current->block_index)
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

inline void __syncthreads(simt::Place place = simt::Place::here()) {
  simt::wait_for_block(simt::Operation::syncthreads, false, place);
}
inline int __syncthreads_count(int predicate, simt::Place place = simt::Place::here()) {
  return simt::wait_for_block(simt::Operation::syncthreads_count, predicate != 0, place);
}
inline int __syncthreads_and(int predicate, simt::Place place = simt::Place::here()) {
  return simt::wait_for_block(simt::Operation::syncthreads_and, predicate != 0, place);
}
inline int __syncthreads_or(int predicate, simt::Place place = simt::Place::here()) {
  return simt::wait_for_block(simt::Operation::syncthreads_or, predicate != 0, place);
}
inline void __threadfence(simt::Place place = simt::Place::here()) { simt::maybe_switch(place); }
[[noreturn]] inline void __trap(simt::Place place = simt::Place::here()) { simt::fail("__trap", place); }
