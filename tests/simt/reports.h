// The words in which failures are reported.
#pragma once

#include <string>

#include "simt/execution.h"

namespace simt {

inline const char *name_of(Operation operation) {
  switch (operation) {
  case Operation::syncthreads:
    return "__syncthreads";
  case Operation::syncthreads_count:
    return "__syncthreads_count";
  case Operation::syncthreads_and:
    return "__syncthreads_and";
  case Operation::syncthreads_or:
    return "__syncthreads_or";
  case Operation::syncwarp:
    return "__syncwarp";
  case Operation::shfl:
    return "__shfl_sync";
  case Operation::shfl_up:
    return "__shfl_up_sync";
  case Operation::shfl_down:
    return "__shfl_down_sync";
  case Operation::shfl_xor:
    return "__shfl_xor_sync";
  case Operation::ballot:
    return "__ballot_sync";
  case Operation::any:
    return "__any_sync";
  case Operation::all:
    return "__all_sync";
  }
  return "?";
}

inline bool is_barrier(Operation operation) { return operation <= Operation::syncthreads_or; }

inline std::string text(uint3 index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

inline std::string text(Place place) { return std::string(place.file) + ":" + std::to_string(place.line); }

inline std::string hexadecimal(unsigned mask) {
  std::string digits = "0x00000000";
  for (size_t i = 0; i < 8; i++)
    digits[9 - i] = "0123456789abcdef"[mask >> 4 * i & 15];
  return digits;
}

// "__shfl_sync of 4 bytes with mask 0xffffffff at file.cu:12"
inline std::string waiting_at(const Thread &thread) {
  std::string words = name_of(thread.operation);
  if (thread.size)
    words += " of " + std::to_string(thread.size) + " bytes";
  if (!is_barrier(thread.operation))
    words += " with mask " + hexadecimal(thread.mask);
  return words + " at " + text(thread.place);
}

} // namespace simt
