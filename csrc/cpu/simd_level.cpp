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
  std::string levels; // that this processor has
  for (SimdLevel level : {SimdLevel::scalar, SimdLevel::avx2, SimdLevel::avx512}) {
    if (level > best)
      break;
    if (std::string(wish) == name_of(level))
      return level;
    levels += (levels.empty() ? "" : ", ") + std::string(name_of(level));
  }
  std::string shown; // one short line of text, whatever came
  for (const char *c = wish; *c && shown.size() < 40; ++c)
    shown += *c >= ' ' && *c <= '~' ? *c : '?';
  throw std::invalid_argument("DDPO3D_SIMD: expected a level of this processor (" + levels + "), got '" +
                              shown + "'");
}

} // namespace ddpo3d_fast
