// What the stages of the CUDA rasterizer hand to each other, and where it lies in the caller's memory.
#pragma once

#include <cuda_runtime.h>

#include "ddpo3d_fast/rasterizer.h"
#include "maths/blend.h"
#include "maths/ellipse.h"

namespace ddpo3d_fast {

constexpr int kTile = 16;                        // px, the side of a tile
constexpr int kBlockWidth = 8, kBlockHeight = 4; // px: a warp's pixels; an entry has a bit for each block
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int32_t kNeverStopped = INT32_MAX;
constexpr int kProjectThreads = 128;

struct alignas(16) DeviceGaussian {
  double x, y; // pixels
  float w11, w12, w22, log2_opacity;
  float red, green, blue, depth;
};

struct alignas(16) DeviceEntry { // a tile's Gaussian
  uint32_t depth_bits;           // of a positive float: they order as it does
  uint32_t gaussian;
  uint32_t slot; // where the backward pass puts this entry's partial gradient: a Gaussian's lie side by side
  uint32_t mask; // the blocks that it may touch
};

// Sums over the pixels of one tile entry, handed from tiles to Gaussians in the backward pass.
struct alignas(16) DeviceEntryGradient {
  float v, u1, u2, u11; // Moments, blend.h
  float u12, u22, red, green;
  float blue, depth, abs_x, abs_y; // the last two where absolute sums are asked for
};

struct DeviceCounters {
  uint32_t overflow;         // whether more entries were needed than there is room for
  uint32_t longest;          // list of a tile
  unsigned long long needed; // entries of all tiles
  unsigned long long placed; // entries of the tiles that have their place already
};

struct DeviceState {
  int64_t tiles_x, tiles; // a camera
  int64_t max_entries;
  DeviceCounters *counters;  // this and the next two are one block, zeroed before every pass
  uint32_t *tile_count;      // [C · tiles] entries
  uint32_t *tile_cursor;     // [C · tiles] entries written so far
  uint32_t *tile_begin;      // [C · tiles] into entries and sorted
  DeviceGaussian *projected; // [C · N]
  Ellipse *ellipses;         // [C · N]
  uint32_t *first_slot;      // [C · N]
  uint32_t *num_slots;       // [C · N] 0: not drawn
  float *transmittance;      // [C · H · W] at the end
  int32_t *stop;             // [C · H · W] entries of the tile's list before blending stopped
  DeviceEntry *entries;      // [max_entries] as they came
  DeviceEntry *sorted;       // [max_entries] a tile's front to back
};

// Hands out aligned pieces of a block of memory; with a null block it only counts.
class Carver {
public:
  explicit Carver(void *block) : begin(static_cast<char *>(block)) {}

  template <class T> T *take(int64_t count) {
    const int64_t offset = used;
    used += (count * int64_t(sizeof(T)) + 255) / 256 * 256;
    return begin ? reinterpret_cast<T *>(begin + offset) : nullptr;
  }

  int64_t bytes() const { return used; }

private:
  char *begin;
  int64_t used = 0;
};

inline int64_t blocks_for(int64_t count, int64_t per_block) { return (count + per_block - 1) / per_block; }

inline DeviceState carve_state(const RasterizeParams &params, void *block, int64_t &bytes,
                               int64_t &zeroed_bytes) {
  DeviceState s = {};
  s.tiles_x = blocks_for(params.width, kTile);
  s.tiles = s.tiles_x * blocks_for(params.height, kTile);
  const int64_t tiles = params.num_cameras * s.tiles, views = params.num_cameras * params.num_gaussians;
  const int64_t pixels = params.num_cameras * params.width * params.height;
  Carver carver(block);
  s.counters = carver.take<DeviceCounters>(1);
  s.tile_count = carver.take<uint32_t>(tiles);
  s.tile_cursor = carver.take<uint32_t>(tiles);
  zeroed_bytes = carver.bytes();
  s.tile_begin = carver.take<uint32_t>(tiles);
  s.projected = carver.take<DeviceGaussian>(views);
  s.ellipses = carver.take<Ellipse>(views);
  s.first_slot = carver.take<uint32_t>(views);
  s.num_slots = carver.take<uint32_t>(views);
  s.transmittance = carver.take<float>(pixels);
  s.stop = carver.take<int32_t>(pixels);
  bytes = carver.bytes();
  return s;
}

inline void carve_entries(int64_t max_entries, void *block, DeviceState &state, int64_t &bytes) {
  Carver carver(block);
  state.max_entries = max_entries;
  state.entries = carver.take<DeviceEntry>(max_entries);
  state.sorted = carver.take<DeviceEntry>(max_entries);
  bytes = carver.bytes();
}

inline DeviceState device_state(const RasterizeParams &params, const RasterizeMemory &memory) {
  int64_t bytes, zeroed_bytes;
  DeviceState state = carve_state(params, memory.state, bytes, zeroed_bytes);
  carve_entries(memory.max_entries, memory.entries, state, bytes);
  return state;
}

// A Gaussian as one tile sees it (Splat of blend.h), laid out for 128-bit loads.
struct alignas(16) TileSplat {
  float w11, w12, w22, u1;
  float u2, log2_opacity, red, green;
  float blue, depth;
  uint32_t mask, slot;
};

__device__ inline TileSplat tile_splat(const DeviceGaussian &g, const DeviceEntry &entry, int x0, int y0) {
  // In double precision: a needle's whitened offset is the small difference of large products.
  const double dx = x0 + 0.5 * kTile - g.x, dy = y0 + 0.5 * kTile - g.y;
  return {g.w11,
          g.w12,
          g.w22,
          float(g.w11 * dx + g.w12 * dy),
          float(g.w22 * dy),
          g.log2_opacity,
          g.red,
          g.green,
          g.blue,
          g.depth,
          entry.mask,
          entry.slot};
}

__device__ inline Splat splat_of(const TileSplat &s) {
  return {s.w11, s.w12, s.w22, s.u1, s.u2, s.log2_opacity, s.red, s.green, s.blue, s.depth};
}

// A thread of a tile has two pixels, one below the other in two blocks: it shares what it loads, and one
// pixel's arithmetic fills the other's waits. A warp has two blocks, 8 x 8 pixels, pairs of blocks row by
// row.
constexpr int kPixels = 2;
constexpr int kTileThreads = kTile * kTile / kPixels;

struct TilePixel {
  int x, y;             // in the image
  float from_x, from_y; // its centre from the tile's centre
  bool inside;          // the image
  int64_t index;        // in [C, H, W]
  uint32_t block;       // its block's bit in a mask
};

__device__ inline TilePixel tile_pixel(const RasterizeParams &params, int64_t camera, int x0, int y0,
                                       int which) {
  constexpr int per_row = kTile / kBlockWidth;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int column = warp % per_row, row = warp / per_row * kPixels + which;
  const int x = column * kBlockWidth + lane % kBlockWidth, y = row * kBlockHeight + lane / kBlockWidth;
  TilePixel p;
  p.x = x0 + x;
  p.y = y0 + y;
  p.from_x = x + 0.5f - 0.5f * kTile;
  p.from_y = y + 0.5f - 0.5f * kTile;
  p.inside = p.x < params.width && p.y < params.height;
  p.index = (camera * params.height + p.y) * params.width + p.x;
  p.block = 1u << (row * per_row + column);
  return p;
}

// The lists, unsorted; blend.cu calls it (project.cu).
void launch_scatter(const RasterizeParams &params, const DeviceState &state, cudaStream_t stream);

} // namespace ddpo3d_fast
