// What one tile is told and asked, forward and backward; compiled once a SIMD level (blend_tiles_*.cpp).
#pragma once

#include "rasterizer_state.h"
#include "simd_level.h"

namespace ddpo3d_fast {

struct TileForward {
  const ProjectedGaussian *projected; // of the camera
  const TileEntry *entries;           // of the tile, front to back
  int32_t num_entries;
  int32_t x0, y0;        // first pixel
  int32_t width, height; // of the image
  float background[3];
  float alpha_max; // of the params; so below
  float transmittance_min;
  float *rgb; // of the camera's image; so alpha, depth
  float *alpha;
  float *depth;
  float *transmittance; // [kTilePixels]
  int32_t *stop;        // [kTilePixels]
};

struct TileBackward {
  const ProjectedGaussian *projected;
  const TileEntry *entries;
  int32_t num_entries;
  int32_t x0, y0;
  int32_t width, height;
  float background[3];
  float alpha_max; // of the params
  bool through_clamp;
  const float *v_rgb; // of the camera's image, or null; so alpha, depth
  const float *v_alpha;
  const float *v_depth;
  const float *transmittance; // [kTilePixels]
  const int32_t *stop;        // [kTilePixels]
  EntryGradient *partial;     // by slot
  EntryAbsolute *absolute;    // by slot, or null
  float *v_background;        // [3] of this tile
};

namespace scalar {
void blend_tile(const TileForward &tile);
void blend_tile_vjp(const TileBackward &tile);
} // namespace scalar
#ifdef DDPO3D_X86_VARIANTS
namespace avx2 {
void blend_tile(const TileForward &tile);
void blend_tile_vjp(const TileBackward &tile);
} // namespace avx2
namespace avx512 {
void blend_tile(const TileForward &tile);
void blend_tile_vjp(const TileBackward &tile);
} // namespace avx512
#endif

} // namespace ddpo3d_fast
