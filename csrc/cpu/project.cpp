// Stage 1 of the CPU rasterizer: Gaussians to the image, and the tiles and blocks that each may touch.
//
// Projection is in double precision: it costs little beside blending, and the images and gradients then
// differ from the exact ones by the rounding of blending alone.
#include <algorithm>

#include "gaussian_view.h"
#include "parallel.h"
#include "rasterizer_state.h"

namespace ddpo3d_fast {
namespace {

bool all_finite(const float *values, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!std::isfinite(values[i]))
      return false;
  return true;
}

bool usable(const RasterizeParams &params, int64_t n) {
  const float *q = params.quats + 4 * n;
  const int64_t num_colors = params.sh_degree < 0 ? 3 : 3 * sh_count(params.sh_degree);
  return all_finite(params.means + 3 * n, 3) && all_finite(q, 4) && all_finite(params.scales + 3 * n, 3) &&
         std::isfinite(params.opacities[n]) &&
         all_finite(params.colors + params.color_stride * n, num_colors) &&
         (q[0] != 0 || q[1] != 0 || q[2] != 0 || q[3] != 0);
}

void view_color(const RasterizeParams &params, const Vec3<double> &position, const Vec3<double> &mean,
                int64_t n, float *color) {
  const float *values = params.colors + params.color_stride * n;
  if (params.sh_degree < 0) {
    for (int c = 0; c < 3; ++c)
      color[c] = values[c];
    return;
  }
  double basis[16], inverse_norm;
  sh_basis(params.sh_degree, normalized(mean - position, inverse_norm), basis);
  for (int c = 0; c < 3; ++c) {
    double sum = 0.5;
    for (int k = 0; k < sh_count(params.sh_degree); ++k)
      sum += basis[k] * values[3 * k + c];
    color[c] = float(std::max(sum, 0.0));
  }
}

// First and last index whose centre, index + ½, lies in [low, high] and in the image.
struct Range {
  int32_t first, last;
  bool empty() const { return first > last; }
};

Range centers_within(double low, double high, int32_t count) {
  const double from = std::max(low - 0.5, 0.0), to = std::min(high - 0.5, count - 1.0);
  if (!(from <= to))
    return {0, -1};
  const int32_t below = int32_t(from); // neither is negative: the cast rounds down
  return {below + (from > below), int32_t(to)};
}

// Appends the tiles that the ellipse dᵀΣ⁻¹d <= reach around (x, y) touches, with the blocks it touches in
// each. A strip of blocks sees the ellipse between two abscissas: the extremes if they lie in the strip, else
// those at the strip's edge nearest to them.
void add_hits(double x, double y, const Footprint<double> &f, int64_t tiles_x, int32_t width, int32_t height,
              std::vector<TileHit> &hits) {
  const double reach_y = std::sqrt(f.reach * f.yy);
  const Range rows = centers_within(y - reach_y, y + reach_y, height);
  if (rows.empty())
    return;
  const double slope = f.xy / f.yy, half_width = std::sqrt(f.dilated_det / f.yy), inverse_yy = 1.0 / f.yy;
  const double y_of_right = f.xy * std::sqrt(f.reach / f.xx);
  for (int32_t tile_y = rows.first / kTile; tile_y <= rows.last / kTile; ++tile_y) {
    Range blocks[kBlocksPerSide];
    int32_t first = INT32_MAX, last = -1;
    for (int strip = 0; strip < kBlocksPerSide; ++strip) {
      const int32_t top = std::max(rows.first, tile_y * kTile + strip * kBlock);
      const int32_t bottom = std::min(rows.last, tile_y * kTile + strip * kBlock + kBlock - 1);
      blocks[strip] = {0, -1};
      if (top > bottom)
        continue;
      const double low = top + 0.5 - y, high = bottom + 0.5 - y;
      const auto edge = [&](double dy, double side) {
        return x + slope * dy + side * half_width * std::sqrt(std::max(f.reach - dy * dy * inverse_yy, 0.0));
      };
      const Range columns = centers_within(edge(std::min(std::max(-y_of_right, low), high), -1.0),
                                           edge(std::min(std::max(y_of_right, low), high), 1.0), width);
      if (columns.empty())
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
      const float *m = params.means + 3 * n;
      const double z = dot(camera.rotation.row[2], {m[0], m[1], m[2]}) + camera.translation.z;
      if (!(z > params.near && z < params.far) || !(params.opacities[n] > float(kAlphaCut)) ||
          !usable(params, n))
        continue;
      const ViewedGaussian view = view_gaussian(params, camera, load_shape(params, n), n);
      const Footprint<double> &f = view.footprint;
      double x = view.projection.mean.x, y = view.projection.mean.y;
      if (params.means2d_offsets) {
        x += params.means2d_offsets[2 * (c * N + n)];
        y += params.means2d_offsets[2 * (c * N + n) + 1];
      }
      if (!(f.reach > 0) || !std::isfinite(x) || !std::isfinite(y) || !std::isfinite(f.dilated_det) ||
          !std::isfinite(f.xx) || !std::isfinite(f.yy))
        continue;
      add_hits(x, y, f, state.tiles_x, int32_t(params.width), int32_t(params.height), hits);
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
      view_color(params, position, {m[0], m[1], m[2]}, n, out.color);
      const double radius = std::ceil(std::sqrt(f.reach * std::max(f.xx, f.yy)));
      radii[c * N + n] = int32_t(std::min(radius, 1073741824.0));
    }
  });
}

} // namespace ddpo3d_fast
