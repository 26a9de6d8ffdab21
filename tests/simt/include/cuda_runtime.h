// The SIMT host emulator: compiles CUDA kernels as plain C++ and runs them with a fibre a thread, so that the
// sources of csrc/cuda are tested where there is no GPU. It stands first on the include path, in the place of
// CUDA's own header, and offers what those sources use; what is missing here does not compile.
//
// What it finds: missing and divergent barriers, wrong warp masks, lanes that disagree about a warp
// operation, dependence on the order of threads and blocks, reads of uninitialised shared memory (filled with
// 0xFF) and, under AddressSanitizer, accesses out of bounds. What it cannot see: the memory model (every
// access is sequentially consistent), timing, and a busy wait that neither touches an atomic nor a fence.
#pragma once

#define DDPO3D_SIMT 1

#include "simt/types.h"

#include "simt/execution.h"

#include "simt/warp.h"

#include "simt/atomics.h"

#include "simt/intrinsics.h"

#include "simt/runtime.h"
