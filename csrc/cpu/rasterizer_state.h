// What the stages of the CPU rasterizer hand to each other: projected Gaussians, tile lists, per-pixel
// results.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "ddpo3d_fast/rasterizer.h"

namespace ddpo3d_fast {

constexpr int kTile = 16; // px, the side of a tile
constexpr int kBlock = 4; // px, the side of a block; a Gaussian's entry in a tile has a bit for each block
constexpr int kTilePixels = kTile * kTile; // stored block after block, each block's pixels row by row
constexpr int kBlockPixels = kBlock * kBlock;
constexpr int kBlocksPerSide = kTile / kBlock;
constexpr int64_t kProjectionGrain = 256; // Gaussians a piece: partial sums depend on it, so it is fixed

struct alignas(64) ProjectedGaussian { // a cache line
  double x, y;                         // pixels
  float w11, w12, w22;                 // whitening, blend.h
  float log2_opacity;
  float color[3];
  float depth;
  uint32_t first_entry; // of its tile entries, within its piece
  uint32_t num_entries; // 0: not drawn
};

struct TileHit { // a Gaussian's tile, in the order of the Gaussians
  uint32_t tile; // within the camera
  uint32_t mask; // the blocks it may touch
};

struct TileEntry { // a tile's Gaussian, in order of depth
  uint32_t gaussian;
  uint32_t slot; // where the backward pass puts this entry's partial gradient: its index in the order of the
                 // Gaussians
  uint32_t mask;
};

// Sums over the pixels of one tile entry, handed from tiles to Gaussians in the backward pass.
struct EntryGradient {
  float v, u1, u2, u11, u12, u22; // Moments, blend.h
  float red, green, blue, depth;
};

struct EntryAbsolute { // where it is asked for
  float x, y;          // sum over the pixels of what each gives to the mean's gradient, absolute
};

struct RasterizeState::Impl {
  int64_t tiles_x = 0, tiles_y = 0, tiles = 0; // a camera
  int64_t pieces = 0;                          // of kProjectionGrain Gaussians, a camera
  int64_t entries = 0;                         // all cameras

  Buffer<ProjectedGaussian> projected;    // [C, N]
  std::vector<std::vector<TileHit>> hits; // [C · pieces]
  std::vector<int64_t> piece_slots;       // [C · pieces] slot of a piece's first hit
  Buffer<int64_t> tile_begin;             // [C · tiles + 1] into entry
  Buffer<TileEntry> entry;
  Buffer<float> transmittance; // [C · tiles, kTilePixels] at the end
  Buffer<int32_t> stop;        // [C · tiles, kTilePixels] entries of the tile's list before blending stopped

  size_t bytes() const {
    size_t total =
        projected.bytes() + tile_begin.bytes() + entry.bytes() + transmittance.bytes() + stop.bytes();
    for (const std::vector<TileHit> &piece : hits)
      total += piece.capacity() * sizeof(TileHit);
    return total;
  }
};

// The stages, in order.
// Returns how many pairs there are; where they are more than max_entries the state holds no use.
int64_t project_gaussians(const RasterizeParams &params, const RasterizeOutputs &outputs, int64_t max_entries,
                          RasterizeState::Impl &state);
void build_tile_lists(const RasterizeParams &params, RasterizeState::Impl &state);
// blend_tiles.h has the tiles' own forward and backward.
void reduce_gaussians(const RasterizeParams &params, const RasterizeState::Impl &state,
                      const EntryGradient *partial, const EntryAbsolute *absolute, float opacity_penalty,
                      const RasterizeGradients &gradients);

} // namespace ddpo3d_fast
