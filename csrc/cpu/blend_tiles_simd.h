// Blending of one tile with SIMD over pixels, forward and backward: the body that every SIMD level compiles.
//
// Calls nothing outside this file, simd.h and maths/ that the compiler might leave uninlined: what is
// compiled here for AVX-512 must not end up in the path of a smaller processor.
#include "blend_tiles.h"

#include "maths/blend.h"
#include "simd.h"

namespace ddpo3d_fast {
namespace DDPO3D_SIMD_VARIANT {
namespace {

constexpr int kBatch = 256;  // entries whose parameters are in the L1 cache at a time
constexpr int kPrefetch = 8; // entries ahead: Gaussians lie anywhere in memory
constexpr int kBlocks = kTilePixels / kBlockPixels;
constexpr int kEntryGradients = sizeof(EntryGradient) / sizeof(float);
constexpr int32_t kNeverStopped = INT32_MAX;

// Pixel centres from the tile's centre, px, in the order of a tile's pixels.
struct PixelOffsets {
  alignas(64) float x[kTilePixels];
  alignas(64) float y[kTilePixels];
};

constexpr int pixel_x(int i) { return i / kBlockPixels % kBlocksPerSide * kBlock + i % kBlock; }
constexpr int pixel_y(int i) {
  return i / (kBlockPixels * kBlocksPerSide) * kBlock + i % kBlockPixels / kBlock;
}

constexpr PixelOffsets make_offsets() {
  PixelOffsets offsets{};
  for (int i = 0; i < kTilePixels; ++i) {
    offsets.x[i] = pixel_x(i) + 0.5f - 0.5f * kTile;
    offsets.y[i] = pixel_y(i) + 0.5f - 0.5f * kTile;
  }
  return offsets;
}

constexpr PixelOffsets kOffsets = make_offsets();

DDPO3D_HD Splat splat_at(const ProjectedGaussian &g, int32_t x0, int32_t y0) {
  const double dx = x0 + 0.5 * kTile - g.x, dy = y0 + 0.5 * kTile - g.y;
  return {g.w11,
          g.w12,
          g.w22,
          float(g.w11 * dx + g.w12 * dy),
          float(g.w22 * dy),
          g.log2_opacity,
          g.color[0],
          g.color[1],
          g.color[2],
          g.depth};
}

} // namespace

void blend_tile(const TileForward &tile) {
  alignas(64) float red[kTilePixels], green[kTilePixels], blue[kTilePixels], depth[kTilePixels];
  float *const transmittance = tile.transmittance;
  int32_t *const stop = tile.stop;
  bool alive[kBlocks];
  for (int i = 0; i < kTilePixels; ++i) {
    red[i] = green[i] = blue[i] = depth[i] = 0.0f;
    transmittance[i] = 1.0f;
    // Pixels beyond the image's edge have stopped before they began.
    stop[i] = tile.x0 + pixel_x(i) < tile.width && tile.y0 + pixel_y(i) < tile.height ? kNeverStopped : 0;
  }
  for (int b = 0; b < kBlocks; ++b)
    alive[b] = stop[b * kBlockPixels] != 0;

  const Float zero = 0.0f, cut = float(kLog2AlphaCut), most = tile.alpha_max, least = tile.transmittance_min;
  Splat splats[kBatch];
  uint16_t lists[kBlocks][kBatch];
  for (int32_t begin = 0; begin < tile.num_entries; begin += kBatch) {
    const int32_t count = tile.num_entries - begin < kBatch ? tile.num_entries - begin : kBatch;
    uint32_t wanted = 0;
    for (int b = 0; b < kBlocks; ++b)
      wanted |= uint32_t(alive[b]) << b;
    if (!wanted)
      break;
    int lengths[kBlocks] = {};
    for (int32_t i = 0; i < count; ++i) {
      const TileEntry &entry = tile.entries[begin + i];
      if (i + kPrefetch < count)
        __builtin_prefetch(tile.projected + tile.entries[begin + i + kPrefetch].gaussian);
      splats[i] = splat_at(tile.projected[entry.gaussian], tile.x0, tile.y0);
      for (uint32_t bits = entry.mask & wanted; bits; bits &= bits - 1) {
        const int b = __builtin_ctz(bits);
        lists[b][lengths[b]++] = uint16_t(i);
      }
    }

    for (int b = 0; b < kBlocks; ++b) {
      if (!lengths[b])
        continue;
      bool block_alive = false;
      for (int p = b * kBlockPixels; p < (b + 1) * kBlockPixels; p += kLanes) {
        Mask live = greater(stop + p, kNeverStopped - 1);
        if (!any(live))
          continue;
        const Float x = load(kOffsets.x + p), y = load(kOffsets.y + p);
        Float T = load(transmittance + p);
        Float r = load(red + p), g = load(green + p), bl = load(blue + p), z = load(depth + p);
        for (int k = 0; k < lengths[b]; ++k) {
          const int i = lists[b][k];
          const Splat &s = splats[i];
          const Falloff<Float> f = falloff<Float>(s, x, y);
          const Mask hit = (f.log2_alpha >= cut) & live;
          const Float alpha = select(hit, min(exp2_fast(f.log2_alpha), most), zero);
          Composite<Float> c = composite(alpha, T);
          const Mask stopping = c.transmittance <= least; // pixels that have stopped keep more
          if (__builtin_expect(any(stopping), 0)) {
            store_where(stopping, stop + p, begin + i);
            live = and_not(live, stopping);
            c = composite(select(stopping, zero, alpha), T);
            if (!any(live))
              k = lengths[b]; // this Gaussian is the last
          }
          T = c.transmittance;
          r = fma(c.weight, Float(s.red), r);
          g = fma(c.weight, Float(s.green), g);
          bl = fma(c.weight, Float(s.blue), bl);
          z = fma(c.weight, Float(s.depth), z);
        }
        store(transmittance + p, T);
        store(red + p, r);
        store(green + p, g);
        store(blue + p, bl);
        store(depth + p, z);
        block_alive |= any(live);
      }
      alive[b] = block_alive;
    }
  }

  for (int i = 0; i < kTilePixels; ++i) {
    const int64_t column = tile.x0 + pixel_x(i), row = tile.y0 + pixel_y(i);
    if (column >= tile.width || row >= tile.height)
      continue;
    const int64_t pixel = row * tile.width + column;
    const float T = transmittance[i];
    tile.rgb[3 * pixel] = red[i] + T * tile.background[0];
    tile.rgb[3 * pixel + 1] = green[i] + T * tile.background[1];
    tile.rgb[3 * pixel + 2] = blue[i] + T * tile.background[2];
    tile.alpha[pixel] = 1.0f - T;
    tile.depth[pixel] = depth[i];
  }
}

namespace {

// `rare`: with what few ask for, absolute sums or a gradient through the clamp.
template <bool rare> DDPO3D_HD void blend_tile_vjp(const TileBackward &tile) {
  alignas(64) float red[kTilePixels], green[kTilePixels], blue[kTilePixels], alpha[kTilePixels],
      depth[kTilePixels];
  alignas(64) float transmittance[kTilePixels], behind[kTilePixels];
  int32_t last[kBlocks] = {}; // entries of a block before all of its pixels stopped
  int32_t tile_last = 0;
  float v_background[3] = {};
  for (int i = 0; i < kTilePixels; ++i) {
    const int64_t column = tile.x0 + pixel_x(i), row = tile.y0 + pixel_y(i);
    const bool inside = column < tile.width && row < tile.height;
    const int64_t pixel = row * tile.width + column;
    red[i] = inside && tile.v_rgb ? tile.v_rgb[3 * pixel] : 0.0f;
    green[i] = inside && tile.v_rgb ? tile.v_rgb[3 * pixel + 1] : 0.0f;
    blue[i] = inside && tile.v_rgb ? tile.v_rgb[3 * pixel + 2] : 0.0f;
    alpha[i] = inside && tile.v_alpha ? tile.v_alpha[pixel] : 0.0f;
    depth[i] = inside && tile.v_depth ? tile.v_depth[pixel] : 0.0f;
    const float T = transmittance[i] = tile.transmittance[i];
    behind[i] = red[i] * tile.background[0] + green[i] * tile.background[1] + blue[i] * tile.background[2];
    v_background[0] += T * red[i];
    v_background[1] += T * green[i];
    v_background[2] += T * blue[i];
    const int32_t stop = tile.stop[i] < tile.num_entries ? tile.stop[i] : tile.num_entries;
    int32_t &block_last = last[i / kBlockPixels];
    block_last = block_last > stop ? block_last : stop;
    tile_last = tile_last > stop ? tile_last : stop;
  }
  for (int c = 0; c < 3; ++c)
    tile.v_background[c] = v_background[c];
  for (int32_t e = tile_last; e < tile.num_entries; ++e)
    tile.partial[tile.entries[e].slot] = EntryGradient{};
  for (int32_t e = tile_last; rare && tile.absolute && e < tile.num_entries; ++e)
    tile.absolute[tile.entries[e].slot] = EntryAbsolute{};

  const Float zero = 0.0f, cut = float(kLog2AlphaCut), most = tile.alpha_max;
  const Float clamped = rare && tile.through_clamp ? 1.0f / tile.alpha_max : 0.0f; // times alpha: its slope
  for (int32_t e = tile_last - 1; e >= 0; --e) {
    const TileEntry &entry = tile.entries[e];
    if (e >= kPrefetch)
      __builtin_prefetch(tile.projected + tile.entries[e - kPrefetch].gaussian);
    const Splat s = splat_at(tile.projected[entry.gaussian], tile.x0, tile.y0);
    Float v = zero, v1 = zero, v2 = zero, v11 = zero, v12 = zero, v22 = zero;
    Float abs_x = zero, abs_y = zero;
    Float v_red = zero, v_green = zero, v_blue = zero, v_depth = zero;
    for (uint32_t bits = entry.mask; bits; bits &= bits - 1) {
      const int b = __builtin_ctz(bits);
      if (e >= last[b])
        continue;
      for (int p = b * kBlockPixels; p < (b + 1) * kBlockPixels; p += kLanes) {
        const Falloff<Float> f = falloff<Float>(s, load(kOffsets.x + p), load(kOffsets.y + p));
        const Mask hit = (f.log2_alpha >= cut) & greater(tile.stop + p, e);
        const Float unclamped = exp2_fast(f.log2_alpha);
        const Float a = select(hit, min(unclamped, most), zero);
        const Float g_red = load(red + p), g_green = load(green + p), g_blue = load(blue + p),
                    g_depth = load(depth + p);
        const Float slope =
            fma(g_red, Float(s.red),
                fma(g_green, Float(s.green),
                    fma(g_blue, Float(s.blue), fma(g_depth, Float(s.depth), load(alpha + p)))));
        const CompositeGradient<Float> c = composite_vjp(a, load(transmittance + p), load(behind + p), slope);
        store(transmittance + p, c.transmittance);
        store(behind + p, c.behind);
        v_red = fma(c.weight, g_red, v_red);
        v_green = fma(c.weight, g_green, v_green);
        v_blue = fma(c.weight, g_blue, v_blue);
        v_depth = fma(c.weight, g_depth, v_depth);
        const Float through = rare ? c.v_log_alpha * (clamped * unclamped) : zero;
        const Float w = select(unclamped <= most, c.v_log_alpha, through);
        const Float w1 = w * f.u1, w2 = w * f.u2;
        if (rare) { // Wᵀu, as footprint_vjp
          const Float x = w1 * Float(s.w11), y = fma(w1, Float(s.w12), w2 * Float(s.w22));
          abs_x = abs_x - min(x, zero - x); // |x|
          abs_y = abs_y - min(y, zero - y);
        }
        v = v + w;
        v1 = v1 + w1;
        v2 = v2 + w2;
        v11 = fma(w1, f.u1, v11);
        v12 = fma(w1, f.u2, v12);
        v22 = fma(w2, f.u2, v22);
      }
    }
    const Float sums[kEntryGradients] = {v, v1, v2, v11, v12, v22, v_red, v_green, v_blue, v_depth};
    store_sums(sums, reinterpret_cast<float *>(tile.partial + entry.slot));
    if (rare && tile.absolute) {
      const Float two[kEntryGradients] = {abs_x, abs_y, zero, zero, zero, zero, zero, zero, zero, zero};
      float both[kEntryGradients];
      store_sums(two, both);
      const float scale = float(2 * kLn2);
      tile.absolute[entry.slot] = {scale * both[0], scale * both[1]};
    }
  }
}

} // namespace

void blend_tile_vjp(const TileBackward &tile) {
  if (tile.absolute || tile.through_clamp)
    blend_tile_vjp<true>(tile);
  else
    blend_tile_vjp<false>(tile);
}

} // namespace DDPO3D_SIMD_VARIANT
} // namespace ddpo3d_fast
