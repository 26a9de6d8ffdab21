// The choice behind simd_level.h.
#include "simd_level.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace ddpo3d_fast {
namespace {

SimdLevel best_level() {
#ifdef DDPO3D_X86_VARIANTS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    return SimdLevel::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return SimdLevel::avx2;
#endif
  return SimdLevel::scalar;
}

} // namespace

const char *name_of(SimdLevel level) {
  return level == SimdLevel::avx512 ? "avx512" : level == SimdLevel::avx2 ? "avx2" : "scalar";
}

SimdLevel simd_level() {
  static const SimdLevel best = best_level();
  const char *wish = std::getenv("DDPO3D_SIMD");
  if (!wish || !*wish)
    return best;
  for (SimdLevel level : {SimdLevel::scalar, SimdLevel::avx2, SimdLevel::avx512}) {
    if (std::string(wish) != name_of(level))
      continue;
    if (level > best)
      throw std::runtime_error(std::string("DDPO3D_SIMD=") + wish + ": the best this processor has is " +
                               name_of(best));
    return level;
  }
  throw std::runtime_error(std::string("DDPO3D_SIMD: expected scalar, avx2 or avx512, got '") + wish + "'");
}

} // namespace ddpo3d_fast
