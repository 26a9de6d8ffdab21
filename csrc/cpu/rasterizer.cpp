// The CPU rasterizer from end to end: projection, tile lists, blending; and backward through blending to the
// Gaussians.
#include "ddpo3d_fast/rasterizer.h"

#include <algorithm>

#include "blend_tiles.h"
#include "parallel.h"

namespace ddpo3d_fast {
namespace {

struct BlendKernels {
  void (*forward)(const TileForward &);
  void (*backward)(const TileBackward &);
};

BlendKernels blend_kernels() {
#ifdef DDPO3D_X86_VARIANTS
  switch (simd_level()) {
  case SimdLevel::avx512:
    return {avx512::blend_tile, avx512::blend_tile_vjp};
  case SimdLevel::avx2:
    return {avx2::blend_tile, avx2::blend_tile_vjp};
  case SimdLevel::scalar:
    break;
  }
#else
  simd_level(); // for its complaint about DDPO3D_SIMD
#endif
  return {scalar::blend_tile, scalar::blend_tile_vjp};
}

// What the two directions say of a tile in the same words.
template <class Tile>
Tile describe_tile(const RasterizeParams &params, const RasterizeState::Impl &state, int64_t index) {
  Tile tile = {};
  const int64_t camera = index / state.tiles, within = index % state.tiles, begin = state.tile_begin[index];
  tile.projected = state.projected.data() + camera * params.num_gaussians;
  tile.entries = state.entry.data() + begin;
  tile.num_entries = int32_t(state.tile_begin[index + 1] - begin);
  tile.x0 = int32_t(within % state.tiles_x) * kTile;
  tile.y0 = int32_t(within / state.tiles_x) * kTile;
  tile.width = int32_t(params.width);
  tile.height = int32_t(params.height);
  for (int c = 0; c < 3; ++c)
    tile.background[c] = params.backgrounds ? params.backgrounds[3 * camera + c] : 0.0f;
  tile.alpha_max = params.alpha_max;
  tile.transmittance = state.transmittance.data() + index * kTilePixels;
  tile.stop = state.stop.data() + index * kTilePixels;
  return tile;
}

template <class Pointer> Pointer at(Pointer pointer, int64_t offset) {
  return pointer ? pointer + offset : nullptr;
}

} // namespace

struct RasterizeState::Owner {
  Recycled<Impl> impl;
};

RasterizeState::RasterizeState() : owner(new Owner) {}
RasterizeState::~RasterizeState() = default;
RasterizeState::Impl &RasterizeState::impl() const { return *owner->impl; }

int64_t rasterize_entries_bytes_cpu(int64_t entries) {
  return entries * int64_t(2 * sizeof(TileHit) + sizeof(TileEntry)); // the hits' vectors grow by doubling
}

int64_t rasterize_forward_cpu(const RasterizeParams &params, const RasterizeOutputs &outputs,
                              int64_t max_entries, RasterizeState &owner) {
  RasterizeState::Impl &state = owner.impl();
  const BlendKernels kernels = blend_kernels();
  state.tiles_x = (params.width + kTile - 1) / kTile;
  state.tiles_y = (params.height + kTile - 1) / kTile;
  state.tiles = state.tiles_x * state.tiles_y;
  state.pieces = (params.num_gaussians + kProjectionGrain - 1) / kProjectionGrain;
  const int64_t entries = project_gaussians(params, outputs, max_entries, state);
  if (entries > max_entries) {
    state.hits.clear(); // with their memory: whoever is told of this may keep the state for a while
    return entries;
  }
  build_tile_lists(params, state);

  const int64_t tiles = params.num_cameras * state.tiles, pixels = params.width * params.height;
  state.transmittance.resize(tiles * kTilePixels);
  state.stop.resize(tiles * kTilePixels);
  parallel_for(tiles, [&](int64_t index) {
    TileForward tile = describe_tile<TileForward>(params, state, index);
    const int64_t first = index / state.tiles * pixels;
    tile.rgb = outputs.rgb + 3 * first;
    tile.alpha = outputs.alpha + first;
    tile.depth = outputs.depth + first;
    tile.transmittance_min = params.transmittance_min;
    kernels.forward(tile);
  });
  return entries;
}

// Four at a time in the places of colour and depth, by the same code: so each has the bits that it has as a
// colour.
void rasterize_features_cpu(const RasterizeParams &params, const float *features, int64_t num_features,
                            float *out, const RasterizeState &owner) {
  constexpr int64_t kAtOnce = 4;
  const RasterizeState::Impl &state = owner.impl();
  const BlendKernels kernels = blend_kernels();
  const int64_t tiles = params.num_cameras * state.tiles, pixels = params.width * params.height;
  const int64_t N = params.num_gaussians;
  Buffer<ProjectedGaussian> projected;
  projected.resize(params.num_cameras * N);
  Buffer<float> scratch;
  scratch.resize(5 * params.num_cameras * pixels);
  float *const rgb = scratch.data(), *const depth = rgb + 3 * params.num_cameras * pixels,
               *const alpha = depth + params.num_cameras * pixels;
  for (int64_t begin = 0; begin < num_features; begin += kAtOnce) {
    const int64_t count = std::min(kAtOnce, num_features - begin);
    parallel_for(params.num_cameras * N, kProjectionGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        ProjectedGaussian &g = projected[i] = state.projected[i];
        const float *const mine = features + i % N * num_features + begin;
        for (int64_t k = 0; k < kAtOnce; ++k)
          (k < 3 ? g.color[k] : g.depth) = k < count ? mine[k] : 0.0f;
      }
    });
    parallel_for(tiles, [&](int64_t index) {
      TileForward tile = describe_tile<TileForward>(params, state, index);
      const int64_t camera = index / state.tiles, first = camera * pixels;
      tile.projected = projected.data() + camera * N;
      std::fill(tile.background, tile.background + 3, 0.0f);
      tile.rgb = rgb + 3 * first;
      tile.alpha = alpha + first;
      tile.depth = depth + first;
      tile.transmittance_min = params.transmittance_min;
      kernels.forward(tile);
      float *const planes = out + (camera * num_features + begin) * pixels;
      for (int64_t y = tile.y0; y < std::min<int64_t>(tile.y0 + kTile, params.height); ++y)
        for (int64_t x = tile.x0; x < std::min<int64_t>(tile.x0 + kTile, params.width); ++x)
          for (int64_t k = 0, pixel = y * params.width + x; k < count; ++k)
            planes[k * pixels + pixel] = k < 3 ? tile.rgb[3 * pixel + k] : tile.depth[pixel];
    });
  }
}

void rasterize_backward_cpu(const RasterizeParams &params, const RasterizeUpstream &upstream,
                            const RasterizeGradients &gradients, const RasterizeState &owner) {
  const RasterizeState::Impl &state = owner.impl();
  const BlendKernels kernels = blend_kernels();
  const int64_t tiles = params.num_cameras * state.tiles, pixels = params.width * params.height;
  Recycled<Buffer<EntryGradient>> partial;
  partial->resize(state.entries);
  std::vector<EntryAbsolute> absolute(gradients.means2d_abs ? state.entries : 0);
  std::vector<float> v_backgrounds(3 * tiles);
  parallel_for(tiles, [&](int64_t index) {
    TileBackward tile = describe_tile<TileBackward>(params, state, index);
    const int64_t first = index / state.tiles * pixels;
    tile.v_rgb = at(upstream.rgb, 3 * first);
    tile.v_alpha = at(upstream.alpha, first);
    tile.v_depth = at(upstream.depth, first);
    tile.partial = partial->data();
    tile.absolute = gradients.means2d_abs ? absolute.data() : nullptr;
    tile.through_clamp = params.through_clamp;
    tile.v_background = v_backgrounds.data() + 3 * index;
    kernels.backward(tile);
  });
  reduce_gaussians(params, state, partial->data(), absolute.data(), upstream.opacity_penalty, gradients);

  for (int64_t c = 0; gradients.backgrounds && c < params.num_cameras; ++c) {
    double v[3] = {};
    for (int64_t t = c * state.tiles; t < (c + 1) * state.tiles; ++t)
      for (int k = 0; k < 3; ++k)
        v[k] += v_backgrounds[3 * t + k];
    for (int k = 0; k < 3; ++k)
      gradients.backgrounds[3 * c + k] = float(v[k]);
  }
}

} // namespace ddpo3d_fast
