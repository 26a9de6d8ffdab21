// Warp operations. The lanes of a mask must meet in the same operation, with the same mask; scheduler.cpp
// checks that. A shuffle from a lane that takes no part gives 0xFF bytes, since CUDA leaves it undefined.
#pragma once

#include <cstring>

#include "execution.h"

namespace simt {

template <class T>
T shuffle(Operation operation, unsigned mask, T value, int source_lane, int width, Place place) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles int, long, long long, float and double");
  if (width != 1 && width != 2 && width != 4 && width != 8 && width != 16 && width != 32)
    fail("a shuffle's width must be 1, 2, 4, 8, 16 or 32", place);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = wait_for_warp(operation, mask, bits, sizeof(T), unsigned(source_lane), place);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int lane() { return int(current->lane); }
inline int first_lane(int width) { return lane() & ~(width - 1); } // of this lane's group

} // namespace simt

inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Place place = simt::Place::here()) {
  simt::wait_for_warp(simt::Operation::syncwarp, mask, 0, 0, 0, place);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source_lane, int width = 32,
              simt::Place place = simt::Place::here()) {
  const int source = simt::first_lane(width) + (source_lane & (width - 1));
  return simt::shuffle(simt::Operation::shfl, mask, value, source, width, place);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 simt::Place place = simt::Place::here()) {
  const int64_t source = int64_t(simt::lane()) - delta;
  return simt::shuffle(simt::Operation::shfl_up, mask, value,
                       source < simt::first_lane(width) ? simt::lane() : int(source), width, place);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   simt::Place place = simt::Place::here()) {
  const int64_t source = int64_t(simt::lane()) + delta;
  return simt::shuffle(simt::Operation::shfl_down, mask, value,
                       source >= simt::first_lane(width) + width ? simt::lane() : int(source), width, place);
}

// Groups before the lane's own can be read, those after it cannot.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  simt::Place place = simt::Place::here()) {
  const int source = simt::lane() ^ lane_mask;
  return simt::shuffle(simt::Operation::shfl_xor, mask, value,
                       source >= simt::first_lane(width) + width ? simt::lane() : source, width, place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Place place = simt::Place::here()) {
  return unsigned(simt::wait_for_warp(simt::Operation::ballot, mask, predicate != 0, 0, 0, place));
}
inline int __any_sync(unsigned mask, int predicate, simt::Place place = simt::Place::here()) {
  return int(simt::wait_for_warp(simt::Operation::any, mask, predicate != 0, 0, 0, place));
}
inline int __all_sync(unsigned mask, int predicate, simt::Place place = simt::Place::here()) {
  return int(simt::wait_for_warp(simt::Operation::all, mask, predicate != 0, 0, 0, place));
}
