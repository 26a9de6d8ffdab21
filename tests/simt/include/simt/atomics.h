// Atomics on the integer types that CUDA has them for: uint64_t is none of them. There are none on floats:
// their sum would depend on the order of threads.
#pragma once

#include "execution.h"

namespace simt {

template <class T> struct Same { // keeps T out of argument deduction, so that plain constants convert
  using type = T;
};

template <class T, class... Allowed> constexpr bool one_of = (std::is_same_v<T, Allowed> || ...);

template <class T, class Update> T atomic(T *address, Place place, Update update) {
  maybe_switch(place);
  const T old = *address;
  *address = update(old);
  return old;
}

} // namespace simt

#define SIMT_ATOMIC(name, expression, ...)                                                                   \
  template <class T>                                                                                         \
  T name(T *address, typename simt::Same<T>::type value, simt::Place place = simt::Place::here()) {          \
    static_assert(simt::one_of<T, __VA_ARGS__>,                                                              \
                  "CUDA has no " #name " for this type: try one of " #__VA_ARGS__);                          \
    return simt::atomic(address, place, [value](T old) { return T(expression); });                           \
  }

SIMT_ATOMIC(atomicAdd, (unsigned long long)old + (unsigned long long)value, int, unsigned, unsigned long long)
SIMT_ATOMIC(atomicSub, (unsigned long long)old - (unsigned long long)value, int, unsigned)
SIMT_ATOMIC(atomicMax, value > old ? value : old, int, unsigned, long long, unsigned long long)
SIMT_ATOMIC(atomicMin, value < old ? value : old, int, unsigned, long long, unsigned long long)
SIMT_ATOMIC(atomicAnd, old &value, int, unsigned, unsigned long long)
SIMT_ATOMIC(atomicOr, old | value, int, unsigned, unsigned long long)
SIMT_ATOMIC(atomicXor, old ^ value, int, unsigned, unsigned long long)
SIMT_ATOMIC(atomicExch, (static_cast<void>(old), value), int, unsigned, unsigned long long, float)
#undef SIMT_ATOMIC

template <class T>
T atomicCAS(T *address, typename simt::Same<T>::type compare, typename simt::Same<T>::type value,
            simt::Place place = simt::Place::here()) {
  static_assert(simt::one_of<T, int, unsigned, unsigned short, unsigned long long>,
                "CUDA has no atomicCAS for this type");
  return simt::atomic(address, place, [=](T old) { return old == compare ? value : old; });
}
