// Stage 1 of the CPU rasterizer: Gaussians to the image, and the tiles and blocks that each may touch.
#include <algorithm>

#include "maths/ellipse.h"
#include "maths/view.h"
#include "parallel.h"
#include "rasterizer_state.h"

namespace ddpo3d_fast {
namespace {

// Appends the tiles that the ellipse touches, with the blocks it touches in each.
void add_hits(const Ellipse &e, int64_t tiles_x, int32_t width, int32_t height, std::vector<TileHit> &hits) {
  const Range rows = rows_of(e, height);
  if (is_empty(rows))
    return;
  for (int32_t tile_y = rows.first / kTile; tile_y <= rows.last / kTile; ++tile_y) {
    Range blocks[kBlocksPerSide];
    int32_t first = INT32_MAX, last = -1;
    for (int strip = 0; strip < kBlocksPerSide; ++strip) {
      const int32_t top = std::max(rows.first, tile_y * kTile + strip * kBlock);
      const int32_t bottom = std::min(rows.last, tile_y * kTile + strip * kBlock + kBlock - 1);
      blocks[strip] = {0, -1};
      if (top > bottom)
        continue;
      const Range columns = columns_of(e, top, bottom, width);
      if (is_empty(columns))
        continue;
      blocks[strip] = {columns.first / kBlock, columns.last / kBlock};
      first = std::min(first, blocks[strip].first / kBlocksPerSide);
      last = std::max(last, blocks[strip].last / kBlocksPerSide);
    }
    for (int32_t tile_x = first; tile_x <= last; ++tile_x) {
      uint32_t mask = 0;
      for (int strip = 0; strip < kBlocksPerSide; ++strip) {
        const int32_t from = std::max(blocks[strip].first - tile_x * kBlocksPerSide, 0);
        const int32_t to = std::min(blocks[strip].last - tile_x * kBlocksPerSide, kBlocksPerSide - 1);
        if (from <= to)
          mask |= ((2u << to) - (1u << from)) << (strip * kBlocksPerSide);
      }
      if (mask)
        hits.push_back({uint32_t(tile_y * tiles_x + tile_x), mask});
    }
  }
}

} // namespace

void project_gaussians(const RasterizeParams &params, int32_t *radii, RasterizeState::Impl &state) {
  const int64_t N = params.num_gaussians;
  state.projected.resize(params.num_cameras * N);
  state.hits.resize(params.num_cameras * state.pieces);
  parallel_for(params.num_cameras * state.pieces, [&](int64_t task) {
    const int64_t c = task / state.pieces, begin = task % state.pieces * kProjectionGrain;
    const Camera<double> camera = load_camera(params, c);
    const Vec3<double> position = camera_position(camera);
    std::vector<TileHit> &hits = state.hits[task];
    hits.clear();
    for (int64_t n = begin; n < std::min(N, begin + kProjectionGrain); ++n) {
      ProjectedGaussian &out = state.projected[c * N + n];
      out.first_entry = uint32_t(hits.size());
      out.num_entries = 0;
      radii[c * N + n] = 0;
      const Vec3<double> mean = load_mean(params, n);
      const double z = dot(camera.rotation.row[2], mean) + camera.translation.z;
      if (!(z > params.near && z < params.far) || !(params.opacities[n] > float(kAlphaCut)) ||
          !is_usable(params, n))
        continue;
      const ViewedGaussian view = view_gaussian(params, camera, load_shape(params, n), n);
      const Footprint<double> &f = view.footprint;
      double x = view.projection.mean.x, y = view.projection.mean.y;
      if (params.means2d_offsets) {
        x += params.means2d_offsets[2 * (c * N + n)];
        y += params.means2d_offsets[2 * (c * N + n) + 1];
      }
      if (!is_drawable(f, x, y))
        continue;
      add_hits(ellipse(x, y, f), state.tiles_x, int32_t(params.width), int32_t(params.height), hits);
      out.num_entries = uint32_t(hits.size()) - out.first_entry;
      if (!out.num_entries)
        continue;
      out.x = x;
      out.y = y;
      out.w11 = float(f.w11);
      out.w12 = float(f.w12);
      out.w22 = float(f.w22);
      out.log2_opacity = float(f.reach * (0.5 / kLn2) + kLog2AlphaCut); // of the opacity after the factor
      out.depth = float(z);
      view_color(params.sh_degree, params.colors + params.color_stride * n, mean - position, out.color);
      radii[c * N + n] = screen_radius(f);
    }
  });
}

} // namespace ddpo3d_fast
