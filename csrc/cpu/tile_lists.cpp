// Stage 2 of the CPU rasterizer: every tile's Gaussians, front to back.
//
// Gaussians are sorted by the bits of their depth, equal ones by their number; then they go to their tiles in
// that order: pieces of the order count their hits in each tile, a prefix sum gives each piece its places,
// and the pieces scatter side by side.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "parallel.h"
#include "rasterizer_state.h"

namespace ddpo3d_fast {
namespace {

struct DepthKey {
  uint32_t bits; // of a positive float: they order as it does
  uint32_t gaussian;
};

// Stable, least significant digit first.
void sort_by_depth(std::vector<DepthKey> &keys, std::vector<DepthKey> &other) {
  constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;
  other.resize(keys.size());
  for (int shift = 0; shift < 32; shift += kDigitBits) {
    uint32_t places[kDigits] = {};
    for (const DepthKey &key : keys)
      ++places[key.bits >> shift & (kDigits - 1)];
    if (places[keys[0].bits >> shift & (kDigits - 1)] == keys.size())
      continue;
    for (uint32_t digit = 0, sum = 0; digit < kDigits; ++digit)
      sum += std::exchange(places[digit], sum);
    for (const DepthKey &key : keys)
      other[places[key.bits >> shift & (kDigits - 1)]++] = key;
    keys.swap(other);
  }
}

std::vector<DepthKey> depth_order(const ProjectedGaussian *projected, int64_t count) {
  std::vector<DepthKey> keys, other;
  keys.reserve(count);
  for (int64_t n = 0; n < count; ++n) {
    if (!projected[n].num_entries)
      continue;
    uint32_t bits;
    std::memcpy(&bits, &projected[n].depth, sizeof(bits));
    keys.push_back({bits, uint32_t(n)});
  }
  if (!keys.empty())
    sort_by_depth(keys, other);
  return keys;
}

} // namespace

void build_tile_lists(const RasterizeParams &params, RasterizeState::Impl &state) {
  const int64_t C = params.num_cameras, N = params.num_gaussians, tiles = state.tiles;
  state.piece_slots.resize(C * state.pieces);
  state.entries = 0;
  std::vector<int64_t> camera_begin(C + 1, 0);
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t p = c * state.pieces; p < (c + 1) * state.pieces; ++p) {
      state.piece_slots[p] = state.entries;
      state.entries += int64_t(state.hits[p].size());
    }
    camera_begin[c + 1] = state.entries;
  }

  std::vector<std::vector<DepthKey>> orders(C);
  parallel_for(C, [&](int64_t c) { orders[c] = depth_order(state.projected.data() + c * N, N); });

  // At most 64 pieces a camera, so that the counts stay small beside the entries.
  struct Piece {
    int64_t camera, begin, end;
  };
  std::vector<Piece> pieces;
  std::vector<int64_t> first_piece(C + 1, 0);
  for (int64_t c = 0; c < C; ++c) {
    const int64_t visible = int64_t(orders[c].size()), grain = std::max<int64_t>(1024, (visible + 63) / 64);
    for (int64_t begin = 0; begin < visible; begin += grain)
      pieces.push_back({c, begin, std::min(visible, begin + grain)});
    first_piece[c + 1] = int64_t(pieces.size());
  }

  const auto for_each_hit = [&](const Piece &piece, auto &&body) {
    for (int64_t i = piece.begin; i < piece.end; ++i) {
      const uint32_t n = orders[piece.camera][i].gaussian;
      const ProjectedGaussian &g = state.projected[piece.camera * N + n];
      const int64_t source = piece.camera * state.pieces + n / kProjectionGrain;
      const TileHit *hits = state.hits[source].data() + g.first_entry;
      for (uint32_t k = 0; k < g.num_entries; ++k)
        body(hits[k], n, uint32_t(state.piece_slots[source] + g.first_entry + k));
    }
  };

  Buffer<uint32_t> places;
  places.resize(pieces.size() * tiles);
  parallel_for(int64_t(pieces.size()), [&](int64_t p) {
    uint32_t *counts = places.data() + p * tiles;
    std::fill(counts, counts + tiles, 0u);
    for_each_hit(pieces[p], [&](const TileHit &hit, uint32_t, uint32_t) { ++counts[hit.tile]; });
  });

  state.tile_begin.resize(C * tiles + 1);
  parallel_for(C, [&](int64_t c) {
    int64_t sum = camera_begin[c];
    for (int64_t t = 0; t < tiles; ++t) {
      state.tile_begin[c * tiles + t] = sum;
      for (int64_t p = first_piece[c]; p < first_piece[c + 1]; ++p)
        sum += std::exchange(places[p * tiles + t], uint32_t(sum));
    }
  });
  state.tile_begin[C * tiles] = state.entries;

  state.entry.resize(state.entries);
  parallel_for(int64_t(pieces.size()), [&](int64_t p) {
    uint32_t *next = places.data() + p * tiles;
    for_each_hit(pieces[p], [&](const TileHit &hit, uint32_t n, uint32_t slot) {
      state.entry[next[hit.tile]++] = {n, slot, hit.mask};
    });
  });
}

} // namespace ddpo3d_fast
