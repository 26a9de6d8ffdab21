// Which pixels an ellipse on the image may touch: the rows, and the columns of a strip of rows.
//
// Decisions that two passes must take alike (count the tiles, then fill them), so both backends compile this
// without contracting multiplications and additions on their own.
#pragma once

#include <cmath>
#include <cstdint>

#include "blend.h"

namespace ddpo3d_fast {

// First and last index; empty if first > last.
struct Range {
  int32_t first, last;
};

DDPO3D_HD bool is_empty(const Range &range) { return range.first > range.last; }

// The indices whose centre, index + ½, lies in [low, high] and in the image.
DDPO3D_HD Range centers_within(double low, double high, int32_t count) {
  const double from = low - 0.5 > 0.0 ? low - 0.5 : 0.0;
  const double to = high - 0.5 < count - 1.0 ? high - 0.5 : count - 1.0;
  if (!(from <= to))
    return {0, -1};
  const int32_t below = int32_t(from); // neither is negative: the cast rounds down
  return {below + (from > below), int32_t(to)};
}

// The ellipse dᵀΣ⁻¹d <= reach around (x, y), d = (dx, dy).
struct alignas(16) Ellipse {
  double x, y;
  double reach;
  double slope;      // of the line through the middles of its horizontal chords: dx a dy
  double half_width; // of the chord at dy = 0, divided by √reach
  double inverse_yy; // chords shorten as √(reach - dy² inverse_yy)
  double y_of_right; // dy of its rightmost point
  double reach_y;    // half its height
  double square;     // only in tiles that this square around it touches: half its side; 0: everywhere
};

constexpr int kSquareTile = 16; // px, the tiles of 3D Gaussian Splatting

// What is left of a range of pixels in the tiles that center - square .. center + square touches. Pixels lie
// at integers here, and the far end counts as 3D Gaussian Splatting (Kerbl et al. 2023) counts it.
DDPO3D_HD Range within_square(const Range &range, double center, double square) {
  const double low = (center - 0.5 - square) / kSquareTile;
  const double high = (center - 0.5 + square + (kSquareTile - 1)) / kSquareTile;
  const double from = kSquareTile * std::floor(low), to = kSquareTile * std::floor(high) - 1;
  if (!(from <= range.last && to >= range.first))
    return {0, -1};
  return {from > range.first ? int32_t(from) : range.first, to < range.last ? int32_t(to) : range.last};
}

DDPO3D_HD Ellipse ellipse(double x, double y, const Footprint<double> &f, double square) {
  Ellipse e;
  e.x = x;
  e.y = y;
  e.reach = f.reach;
  e.slope = f.xy / f.yy;
  e.half_width = std::sqrt(f.dilated_det / f.yy);
  e.inverse_yy = 1.0 / f.yy;
  e.y_of_right = f.xy * std::sqrt(f.reach / f.xx);
  e.reach_y = std::sqrt(f.reach * f.yy);
  e.square = square;
  return e;
}

DDPO3D_HD Range rows_of(const Ellipse &e, int32_t height) {
  const Range rows = centers_within(e.y - e.reach_y, e.y + e.reach_y, height);
  return e.square > 0 ? within_square(rows, e.y, e.square) : rows;
}

DDPO3D_HD double chord_end(const Ellipse &e, double dy, double low, double high, double side) {
  dy = dy < low ? low : dy > high ? high : dy;
  const double rest = e.reach - dy * dy * e.inverse_yy;
  return e.x + e.slope * dy + side * e.half_width * std::sqrt(rest > 0.0 ? rest : 0.0);
}

// The columns that the ellipse touches in rows top..bottom: a strip sees it between two abscissas, the
// extremes if they lie in the strip, else those at the strip's edge nearest to them.
DDPO3D_HD Range columns_of(const Ellipse &e, int32_t top, int32_t bottom, int32_t width) {
  const double low = top + 0.5 - e.y, high = bottom + 0.5 - e.y;
  const Range columns = centers_within(chord_end(e, -e.y_of_right, low, high, -1.0),
                                       chord_end(e, e.y_of_right, low, high, 1.0), width);
  return e.square > 0 ? within_square(columns, e.x, e.square) : columns;
}

// The blocks, counted from the image's edge, that it touches in the strip of pixel rows that starts with
// `begin`; `rows` are the ellipse's.
template <int block_width, int block_height>
DDPO3D_HD Range blocks_of(const Ellipse &e, const Range &rows, int32_t begin, int32_t width) {
  const int32_t end = begin + block_height - 1;
  const int32_t top = rows.first > begin ? rows.first : begin, bottom = rows.last < end ? rows.last : end;
  if (top > bottom)
    return {0, -1};
  const Range columns = columns_of(e, top, bottom, width);
  return is_empty(columns) ? Range{0, -1} : Range{columns.first / block_width, columns.last / block_width};
}

// The bits of a tile's mask for a strip of its blocks.
template <int blocks> DDPO3D_HD uint32_t strip_mask(const Range &touched, int32_t tile_x) {
  const int32_t left = touched.first - tile_x * blocks, from = left > 0 ? left : 0;
  const int32_t right = touched.last - tile_x * blocks, to = right < blocks - 1 ? right : blocks - 1;
  return from <= to ? (2u << to) - (1u << from) : 0u;
}

// A row of tiles as the ellipse meets it, in strips as high as a block.
template <int strips> struct TileRow {
  Range touched[strips]; // blocks of the strip, counted from the image's edge
  int32_t first, last;   // tiles; none if first > last
};

template <int tile, int block_width, int block_height>
DDPO3D_HD TileRow<tile / block_height> tile_row(const Ellipse &e, const Range &rows, int32_t tile_y,
                                                int32_t width) {
  constexpr int strips = tile / block_height, blocks = tile / block_width;
  TileRow<strips> row;
  row.first = INT32_MAX;
  row.last = -1;
  for (int strip = 0; strip < strips; ++strip) {
    row.touched[strip] =
        blocks_of<block_width, block_height>(e, rows, tile_y * tile + strip * block_height, width);
    if (is_empty(row.touched[strip]))
      continue;
    row.first = row.touched[strip].first / blocks < row.first ? row.touched[strip].first / blocks : row.first;
    row.last = row.touched[strip].last / blocks > row.last ? row.touched[strip].last / blocks : row.last;
  }
  return row;
}

// Calls visit(tile index, mask) for every tile that has a touched block, row by row. A tile is tile x tile
// pixels; bit (block row · blocks a row + block column) of the mask says that the ellipse touches that block
// of block_width x block_height.
template <int tile, int block_width, int block_height, class Visit>
DDPO3D_HD void visit_tiles(const Ellipse &e, int32_t tiles_x, int32_t width, int32_t height,
                           const Visit &visit) {
  constexpr int strips = tile / block_height, blocks = tile / block_width;
  const Range rows = rows_of(e, height);
  if (is_empty(rows))
    return;
  for (int32_t tile_y = rows.first / tile; tile_y <= rows.last / tile; ++tile_y) {
    const TileRow<strips> row = tile_row<tile, block_width, block_height>(e, rows, tile_y, width);
    for (int32_t tile_x = row.first; tile_x <= row.last; ++tile_x) {
      uint32_t mask = 0;
      for (int strip = 0; strip < strips; ++strip)
        mask |= strip_mask<blocks>(row.touched[strip], tile_x) << (strip * blocks);
      if (mask)
        visit(uint32_t(tile_y) * uint32_t(tiles_x) + uint32_t(tile_x), mask);
    }
  }
}

// How many tiles visit_tiles visits, mostly without a look at each.
template <int tile, int block_width, int block_height>
DDPO3D_HD uint32_t count_tiles(const Ellipse &e, int32_t width, int32_t height) {
  constexpr int strips = tile / block_height, blocks = tile / block_width;
  const Range rows = rows_of(e, height);
  uint32_t count = 0;
  for (int32_t tile_y = rows.first / tile; !is_empty(rows) && tile_y <= rows.last / tile; ++tile_y) {
    const TileRow<strips> row = tile_row<tile, block_width, block_height>(e, rows, tile_y, width);
    const auto tiles_of = [&](int strip) {
      return is_empty(row.touched[strip])
                 ? Range{0, -1}
                 : Range{row.touched[strip].first / blocks, row.touched[strip].last / blocks};
    };
    Range joined = {0, -1}; // what the strips touch together, as long as it is in one piece
    bool in_one_piece = true;
    for (int strip = 0; strip < strips; ++strip) {
      const Range tiles = tiles_of(strip);
      if (is_empty(tiles))
        continue;
      if (is_empty(joined)) {
        joined = tiles;
        continue;
      }
      in_one_piece = in_one_piece && tiles.first <= joined.last + 1 && tiles.last >= joined.first - 1;
      joined = {tiles.first < joined.first ? tiles.first : joined.first,
                tiles.last > joined.last ? tiles.last : joined.last};
    }
    if (in_one_piece) {
      count += uint32_t(joined.last - joined.first + 1);
      continue;
    }
    for (int32_t tile_x = row.first; tile_x <= row.last; ++tile_x) {
      bool touched = false;
      for (int strip = 0; strip < strips; ++strip)
        touched = touched || (tiles_of(strip).first <= tile_x && tile_x <= tiles_of(strip).last);
      count += touched;
    }
  }
  return count;
}

} // namespace ddpo3d_fast
