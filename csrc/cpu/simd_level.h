// Which SIMD variant of a CPU kernel runs on this processor.
#pragma once

namespace ddpo3d_fast {

enum class SimdLevel { scalar, avx2, avx512 }; // scalar: what every processor of the architecture has

// The best level of this processor, or what the environment variable DDPO3D_SIMD (scalar, avx2, avx512) asks
// for. std::invalid_argument when that names no level, or one that this processor or build does not have.
SimdLevel simd_level();
const char *name_of(SimdLevel level);

} // namespace ddpo3d_fast
