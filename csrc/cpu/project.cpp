// Stage 1 of the CPU rasterizer: Gaussians to the image, and the tiles and blocks that each may touch.
#include <algorithm>
#include <atomic>

#include "maths/ellipse.h"
#include "maths/view.h"
#include "parallel.h"
#include "rasterizer_state.h"

namespace ddpo3d_fast {
namespace {

constexpr int64_t kReportedAtOnce = 1 << 16; // pairs that a thread may keep beyond the limit

} // namespace

int64_t project_gaussians(const RasterizeParams &params, const RasterizeOutputs &outputs, int64_t max_entries,
                          RasterizeState::Impl &state) {
  int32_t *const radii = outputs.radii;
  const int64_t N = params.num_gaussians;
  state.projected.resize(params.num_cameras * N);
  state.hits.resize(params.num_cameras * state.pieces);
  std::atomic<int64_t> entries{0};
  parallel_for(params.num_cameras * state.pieces, [&](int64_t task) {
    const int64_t c = task / state.pieces, begin = task % state.pieces * kProjectionGrain;
    const Camera<double> camera = load_camera(params, c);
    const Vec3<double> position = view_position(params, camera, c);
    std::vector<TileHit> &hits = state.hits[task];
    hits.clear();
    int64_t unreported = 0;
    bool fits = entries <= max_entries; // else the pairs are counted and no longer kept
    const auto report = [&] {
      fits = entries.fetch_add(unreported, std::memory_order_relaxed) + unreported <= max_entries;
      unreported = 0;
    };
    for (int64_t n = begin; n < std::min(N, begin + kProjectionGrain); ++n) {
      ProjectedGaussian &out = state.projected[c * N + n];
      out.first_entry = uint32_t(hits.size());
      out.num_entries = 0;
      const int64_t index = c * N + n;
      radii[index] = 0;
      if (outputs.box_radii)
        outputs.box_radii[2 * index] = outputs.box_radii[2 * index + 1] = 0;
      if (!may_show(params, n) && !(params.sigmas > 0))
        continue;
      Vec3<double> mean = {};
      Vec2<double> on_image = {};
      double z;
      Footprint<double> f;
      if (params.covariances2d) {
        if (!is_given(params, index, n))
          continue;
        z = params.depths[index];
        f = given_footprint(params, index, n);
      } else {
        mean = load_mean(params, n);
        z = dot(camera.rotation.row[2], mean) + camera.translation.z;
        if (!sees_depth(params, camera, z) || !is_usable(params, n))
          continue;
        const ViewedGaussian view = view_gaussian(params, camera, load_shape(params, n), n);
        on_image = view.projection.mean;
        f = view.footprint;
      }
      on_image = image_mean(params, index, on_image);
      const double x = on_image.x, y = on_image.y;
      int32_t radius = 0;
      if (params.sigmas > 0) {
        radius = radii[index] = square_radius(params, f, x, y);
        if (!radius)
          continue;
      }
      if (!is_drawable(f, x, y))
        continue;
      if (outputs.box_radii || params.radius_clip > 0) {
        const BoxRadii box = box_radii(params, f, x, y);
        if (!box.x)
          continue;
        if (outputs.box_radii) {
          outputs.box_radii[2 * index] = box.x;
          outputs.box_radii[2 * index + 1] = box.y;
        }
      }
      const Ellipse e = ellipse(x, y, f, radius);
      const int32_t width = int32_t(params.width), height = int32_t(params.height);
      if (fits)
        visit_tiles<kTile, kBlock, kBlock>(
            e, int32_t(state.tiles_x), width, height,
            [&](uint32_t tile, uint32_t mask) { hits.push_back({tile, mask}); });
      out.num_entries = fits ? uint32_t(hits.size()) - out.first_entry
                             : count_tiles<kTile, kBlock, kBlock>(e, width, height);
      if (!out.num_entries)
        continue;
      unreported += out.num_entries;
      if (unreported >= kReportedAtOnce)
        report();
      out.x = x;
      out.y = y;
      out.w11 = float(f.w11);
      out.w12 = float(f.w12);
      out.w22 = float(f.w22);
      out.log2_opacity = float(f.reach * (0.5 / kLn2) + kLog2AlphaCut); // of the opacity after the factor
      out.depth = float(z);
      view_color(params.sh_degree, params.colors + params.color_stride * n, mean - position, out.color);
      radii[index] = params.sigmas > 0 ? radius : screen_radius(f);
    }
    report();
  });
  return entries;
}

} // namespace ddpo3d_fast
