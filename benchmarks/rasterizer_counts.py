"""What the CUDA rasterizer's blocks and warps do for a view, counted on the CPU for rasterizer_plans.py.

The same decisions as the kernels': ellipse.h's test of every 8 x 4 block, lists by depth, blending up to
where a pixel stops; in double precision, so that a pixel may stop an entry earlier or later than there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from rasterizer_work import Ellipses, expanded, seen_ellipses
from torch import Tensor

WARP, BLOCK_WIDTH, BLOCK_HEIGHT = 32, 8, 4
NEVER = 1 << 40  # where a pixel stops that does not
CHUNK = 1 << 14  # entries of 8 x 4 blocks that are evaluated at a time


class TileCounts(NamedTuple):
    """A view's tiles. T tiles, W warps of each; F, B batches, forward and backward; G buckets."""

    length: Tensor  # [T] entries of the list
    stop: Tensor  # [T, W] entry at which a block's last pixel stops, NEVER, or -1 without a pixel
    groups: Tensor  # [T, W] of 32 entries that a warp looks at
    batches: Tensor  # [T] forward
    batch_tile: Tensor  # [F]
    batch_groups: Tensor  # [F, W]
    evaluated: Tensor  # [F, W] entries, forward
    blended: Tensor  # [F, W] of these, that some pixel still blending finds opaque enough
    tile_stop: Tensor  # [T] entries of the list before the last pixel stops
    back_tile: Tensor  # [B]
    back_evaluated: Tensor  # [B, W]
    back_taken: Tensor  # [B, W] of these, that some pixel took
    bucket_tile: Tensor  # [G]
    bucket_live: Tensor  # [G] whether some pixel took one of its entries, or might have
    bucket_taken: Tensor  # [G] steps in which some lane took part


class ViewCounts(NamedTuple):
    tiles: dict[int, TileCounts]  # by a tile's side
    contributions: int
    hits: dict[int, Tensor]  # [N] tiles of a Gaussian
    rows: dict[
        int, tuple[Tensor, Tensor, Tensor]
    ]  # Gaussian, row of its tiles from 0, tiles across: each row


def centers_within(low: Tensor, high: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """First and last index whose centre lies between; first > last if none (ellipse.h)."""
    return (low - 0.5).clamp(min=0).ceil().long(), (high - 0.5).clamp(max=count - 1).floor().long()


def touched_strips(e: Ellipses, width: int, height: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every ellipse and row of blocks: which ellipse, which row, first and last block (ellipse.h)."""
    half = (e.reach * e.yy).sqrt()
    top, bottom = centers_within(e.y - half, e.y + half, height)
    strips = (bottom // BLOCK_HEIGHT - top // BLOCK_HEIGHT + 1) * (top <= bottom)
    of, strip = expanded(top // BLOCK_HEIGHT, strips)
    low = torch.maximum(top[of], strip * BLOCK_HEIGHT) + 0.5 - e.y[of]
    high = torch.minimum(bottom[of], (strip + 1) * BLOCK_HEIGHT - 1) + 0.5 - e.y[of]
    right = (e.xy * (e.reach / e.xx).sqrt())[of]
    ends = []
    for side in (-1, 1):
        dy = (side * right).clamp(low, high)
        chord = (e.det / e.yy)[of].sqrt() * (e.reach[of] - dy**2 / e.yy[of]).clamp(min=0).sqrt()
        ends.append(e.x[of] + (e.xy / e.yy)[of] * dy + side * chord)
    first, last = centers_within(*ends, width)
    some = first <= last
    return of[some], strip[some], first[some] // BLOCK_WIDTH, last[some] // BLOCK_WIDTH


def count_view(scene: dict[str, Any], viewmat: Tensor, k: Tensor) -> ViewCounts:
    width, height = scene["width"], scene["height"]
    e = seen_ellipses(scene, viewmat, k)
    blocks_x, blocks_y = -(-width // BLOCK_WIDTH), -(-height // BLOCK_HEIGHT)
    of, strip, first, last = touched_strips(e, width, height)
    across, column = expanded(first, last - first + 1)
    block, near = strip[across] * blocks_x + column, of[across]  # an entry of a block; its place in depth
    order = (block * len(e.x) + near).argsort()
    block, near = block[order], near[order]
    column, row = torch.arange(blocks_x * blocks_y) % blocks_x, torch.arange(blocks_x * blocks_y) // blocks_x

    # Where each entry of a block stands in its tile's list, for both sizes of tiles.
    tile_of, warp_of, lists = {}, {}, {}
    for side in (8, 16):
        wide, high = side // BLOCK_WIDTH, side // BLOCK_HEIGHT
        tile_of[side] = row // high * -(-width // side) + column // wide
        warp_of[side] = row % high * wide + column % wide
        lists[side] = tile_lists(tile_of[side][block], near, len(e.x), -(-width // side) * -(-height // side))

    lane = torch.arange(WARP)
    x = (column * BLOCK_WIDTH)[:, None] + lane % BLOCK_WIDTH
    y = (row * BLOCK_HEIGHT)[:, None] + lane // BLOCK_WIDTH
    inside = (x < width) & (y < height)  # [blocks, 32]
    stopped = torch.zeros(len(column), dtype=torch.long)  # pixels
    last_stop = torch.full((len(column),), -1)  # entry of all blocks' lists
    blended, taken = torch.zeros(2, len(block), dtype=torch.bool)
    flags = {
        side: torch.zeros(len(lists[side].bucket_tile), side**2 + WARP - 1, dtype=torch.bool)
        for side in lists
    }
    begins = torch.cat([torch.zeros(1, dtype=torch.long), block.bincount(minlength=len(column)).cumsum(0)])
    contributions, begin = 0, 0
    while begin < len(block):  # whole blocks, as many as have at most CHUNK entries, or one
        end = int(begins[torch.searchsorted(begins, begin + CHUNK, right=True) - 1])
        end = end if end > begin else int(begins[block[begin] + 1])
        b, g = block[begin:end], near[begin:end]
        dx, dy = x[b] + 0.5 - e.x[g, None], y[b] + 0.5 - e.y[g, None]
        power = e.yy[g, None] * dx**2 - 2 * e.xy[g, None] * dx * dy + e.xx[g, None] * dy**2
        alpha = (e.opacity[g, None] * torch.exp(-0.5 * power / e.det[g, None])).clamp(max=0.99)
        seen = (alpha >= 1 / 255) & inside[b]
        let = torch.where(seen, torch.log1p(-alpha), 0)
        through = let.cumsum(0)
        head = begins[b] - begin
        through = through - (through[head] - let[head])
        live = seen & (through - let > math.log(1e-4))
        take = live & (through > math.log(1e-4))
        ends = live & ~take
        blended[begin:end], taken[begin:end] = live.any(1), take.any(1)
        stopped.index_add_(0, b, ends.sum(1))
        at = ends.any(1).nonzero()[:, 0]
        last_stop.scatter_reduce_(0, b[at], at + begin, "amax")
        contributions += int(take.sum())
        entry, lane_of = take.nonzero(as_tuple=True)
        for side, found in lists.items():
            pixel = y[b[entry], lane_of] % side * side + x[b[entry], lane_of] % side
            place = found.place[begin:end][entry]
            bucket = found.bucket_begin[tile_of[side][b[entry]]] + place // WARP
            flags[side].view(-1)[bucket * flags[side].shape[1] + place % WARP + pixel] = True
        begin = end

    pixels = inside.sum(1)
    tiles, hits, rows = {}, {}, {}
    for side, found in lists.items():
        done = (stopped == pixels) & (pixels > 0)
        stop = torch.where(pixels > 0, torch.full_like(pixels, NEVER), -1)
        stop[done] = found.place[last_stop[done]]
        tiles[side] = count_tiles(
            side, found, tile_of[side], warp_of[side], block, stop, blended, taken, flags[side].sum(1)
        )
        numbers = len(scene["means"])
        hits[side] = e.number[found.near].bincount(minlength=numbers)
        rows[side] = tile_rows(e.number[of], strip * BLOCK_HEIGHT // side, first, last, side, numbers)
    return ViewCounts(tiles, contributions, hits, rows)


class Lists(NamedTuple):
    length: Tensor  # [T]
    place: Tensor  # [entries of blocks] in the tile's list
    near: Tensor  # [entries of tiles] place in depth
    bucket_begin: Tensor  # [T]
    bucket_tile: Tensor  # [G]


def tile_lists(tile: Tensor, near: Tensor, depths: int, tiles: int) -> Lists:
    entries, index = torch.unique(tile * depths + near, return_inverse=True)
    length = (entries // max(depths, 1)).bincount(minlength=tiles)
    place = index - (length.cumsum(0) - length)[tile]
    buckets = -(-length // WARP)
    return Lists(
        length,
        place,
        entries % max(depths, 1),
        buckets.cumsum(0) - buckets,
        torch.arange(tiles).repeat_interleave(buckets),
    )


def count_tiles(
    side: int,
    lists: Lists,
    tile_of: Tensor,
    warp_of: Tensor,
    block: Tensor,
    stop: Tensor,  # [blocks] place in the tile's list at which the last pixel stops
    blended: Tensor,
    taken: Tensor,
    bucket_taken: Tensor,
) -> TileCounts:
    length, place = lists.length, lists.place
    tiles, warps, batch = len(length), side**2 // WARP, side**2
    tile, warp = tile_of[block], warp_of[block]
    stops = torch.full((tiles, warps), -1)
    stops[tile_of, warp_of] = stop
    groups = torch.minimum(stops.clamp(min=-1) // WARP + 1, -(-length // WARP)[:, None])
    batches = torch.minimum(stops.amax(1) // batch + 1, -(-length // batch))

    def per_batch(which: Tensor, index: Tensor, count: int) -> Tensor:
        key = (index * warps + warp)[which]
        return key.bincount(minlength=count * warps).view(-1, warps)

    begin, total = batches.cumsum(0) - batches, int(batches.sum())
    batch_tile = torch.arange(tiles).repeat_interleave(batches)
    number = torch.arange(total) - begin[batch_tile]
    looked = place // WARP * WARP <= stop[block]
    index = begin[tile] + place // batch
    a_batch = batch // WARP
    batch_groups = (groups[batch_tile] - (number * a_batch)[:, None]).clamp(0, a_batch)

    warp_stop = torch.minimum(stops.clamp(min=0), length[:, None])
    tile_stop = warp_stop.amax(1)
    backs = -(-tile_stop // WARP)
    back_index = (backs.cumsum(0) - backs)[tile] + (tile_stop[tile] - 1 - place) // WARP
    back_looked = place < warp_stop[tile, warp]
    bucket = torch.arange(len(lists.bucket_tile)) - lists.bucket_begin[lists.bucket_tile]
    return TileCounts(
        length=length,
        stop=stops,
        groups=groups,
        batches=batches,
        batch_tile=batch_tile,
        batch_groups=batch_groups,
        evaluated=per_batch(looked, index, total),
        blended=per_batch(looked & blended, index, total),
        tile_stop=tile_stop,
        back_tile=torch.arange(tiles).repeat_interleave(backs),
        back_evaluated=per_batch(back_looked, back_index, int(backs.sum())),
        back_taken=per_batch(back_looked & taken, back_index, int(backs.sum())),
        bucket_tile=lists.bucket_tile,
        bucket_live=bucket * WARP < tile_stop[lists.bucket_tile],
        bucket_taken=bucket_taken,
    )


def tile_rows(
    gaussian: Tensor, tile_row: Tensor, first: Tensor, last: Tensor, side: int, numbers: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Every Gaussian's rows of tiles: whose, which from its first on, how many tiles from left to right."""
    blocks, count = side // BLOCK_WIDTH, int(tile_row.max()) + 1 if len(tile_row) else 1
    keys, index = torch.unique(gaussian * count + tile_row, return_inverse=True)
    left = torch.full_like(keys, NEVER).scatter_reduce_(0, index, first // blocks, "amin")
    right = torch.zeros_like(keys).scatter_reduce_(0, index, last // blocks, "amax")
    whose = keys // count
    lengths = whose.bincount(minlength=numbers)
    return whose, torch.arange(len(keys)) - (lengths.cumsum(0) - lengths)[whose], right - left + 1
