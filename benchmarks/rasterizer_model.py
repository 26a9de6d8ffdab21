"""A model of the CUDA rasterizer's time, from what rasterizer_counts.py counts; rasterizer_plans.py tells."""

from __future__ import annotations

import functools
import heapq
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rasterizer_counts import WARP, TileCounts, ViewCounts
from rasterizer_cuda import PLANS
from torch import Tensor

RESOURCES = Path(__file__).parent / "results" / "kernel-resources.json"

# Instructions of a warp, counted between the addresses of loops and branches in `cuobjdump -sass`, for sm_90
# by nvcc 13.0. loop_lengths recounts loops: "evaluate" and "blend" are one of 41, within a group's of 68.
INSTRUCTIONS = {
    # blend_kernel: a tile; a batch; 32 entries loaded; a group of 32; an entry that the mask lets through;
    # one that some pixel blends. With buckets, on top: a group, and a bucket at the end.
    "tile": 200, "batch": 20, "load": 42, "group": 27, "evaluate": 19, "blend": 22,
    "save": 47, "suffix": 14,
    # sort_list: 32 entries loaded, 32 pairs compared, a round of a warp, 32 entries written; merging: 32
    # entries, one step of their search, a level; 32 entries copied back.
    "sort_load": 17, "compare": 26, "round": 21, "sort_write": 11,
    "merge": 22, "search": 13, "level": 21, "copy": 7,
    # blend_vjp_kernel: a tile; a batch, and its loading; an entry; one that is taken; 32 thirds of sums, and
    # on top for every warp of the tile; 32 entries cleared.
    "back_tile": 190, "back_batch": 50, "back_load": 45, "back_evaluate": 22, "back_take": 106,
    "sum": 15, "sum_warp": 5, "clear": 11,
    # bucket_vjp_kernel: a block without a bucket; a bucket; 32 pixels; a step; one that some lane takes.
    "idle": 14, "bucket": 150, "pixels": 97, "step": 36, "step_take": 53,
    # project_kernel, scatter_kernel: a warp; a strip of 4 px; a tile. gaussians_vjp_kernel: a view; a slot.
    "project": 1900, "strip": 190, "count_tile": 40, "scatter": 110, "fill_tile": 55,
    "gaussian": 1300, "slot": 26,
}  # fmt: skip

# Cycles until a result can be used, and how an event chains them: assumed, of the size that microbenchmarks
# of such GPUs report. A merge's searches find most of their lines in L1.
ALU, SHARED, SHUFFLE, BARRIER, MUFU, BRANCH, F64, L1, L2 = 4, 30, 24, 25, 20, 15, 10, 40, 265
LATENCY = {
    "tile": 3 * L2 + 20 * ALU, "batch": 2 * BARRIER, "load": 2 * L2 + 6 * F64 + SHARED,
    "group": SHARED + 6 * ALU + BRANCH, "evaluate": 2 * MUFU + 8 * ALU + SHARED + 2 * BRANCH,
    "blend": MUFU + 7 * ALU + SHARED + BRANCH, "save": 10 * ALU, "suffix": (L2 + 8 * ALU) / 4,
    "sort_load": L2 + SHARED, "compare": 2 * SHARED + 8 * ALU + 2 * BRANCH,
    "round": 8 * ALU + BRANCH + BARRIER, "sort_write": L2 + SHARED,
    "merge": L2 + 6 * ALU, "search": 2 * L1 + 6 * ALU + BRANCH, "level": BARRIER, "copy": L2 + 4 * ALU,
    "back_tile": 3 * L2 + 5 * SHUFFLE + BARRIER + 2 * SHARED, "back_batch": 3 * BARRIER + SHARED + 10 * ALU,
    "back_load": 2 * L2 + 6 * F64 + SHARED, "back_evaluate": MUFU + 14 * ALU + SHARED + 2 * BRANCH,
    "back_take": 2 * MUFU + 25 * ALU + 5 * SHUFFLE + 2 * BRANCH, "sum": 2 * SHARED + 4 * ALU, "sum_warp": ALU,
    "clear": L2 / 4,
    "idle": 2 * L2, "bucket": 5 * L2 + 6 * F64 + 5 * SHUFFLE, "pixels": 2 * L2 + 10 * ALU,
    "step": SHUFFLE + SHARED + 12 * ALU + 3 * BRANCH, "step_take": 2 * MUFU + 20 * ALU + 2 * BRANCH,
    "project": 6000, "strip": 40 * F64, "count_tile": 12 * ALU, "scatter": 3 * L2, "fill_tile": L2 + 16 * ALU,
    "gaussian": 5000, "slot": (L2 + 30 * F64) / 4,
}  # fmt: skip
PARTS = {  # of the model, to be doubted one at a time
    "buckets": ("save", "suffix", "bucket", "pixels", "step", "step_take"),
    "pixels": ("back_tile", "back_batch", "back_load", "back_evaluate", "back_take", "sum", "sum_warp"),
    "sort": ("sort_load", "compare", "round", "sort_write", "merge", "search", "level", "copy"),
}
SORTED_AT_ONCE = 1024  # entries of a list, in shared memory (blend.cu)
ISSUED = 3.0  # warp instructions a cycle that a multiprocessor can be expected to reach, of 4
LAUNCH_US = 2.0  # a kernel's launch within a graph; four forward, two backward
MOST_BLOCKS = (
    6_000  # of a kernel that are followed one by one; of more, an even sample on fewer multiprocessors
)
SPARE = 1.5  # room of a TileCapacity over what is needed: blocks of the bucket pass without a bucket


@contextmanager
def slowed(part: str, factor: float) -> Iterator[None]:
    """Within it a part's events take `factor` times as many cycles."""
    kept = {name: LATENCY[name] for name in PARTS[part]}
    LATENCY.update({name: factor * cycles for name, cycles in kept.items()})
    sort_costs.cache_clear()
    try:
        yield
    finally:
        LATENCY.update(kept)
        sort_costs.cache_clear()


def loop_lengths(sass: str) -> dict[str, list[int]]:
    """Instructions of every loop, the inner ones' included, by kernel, in what `cuobjdump -sass` prints."""
    found: dict[str, list[int]] = {}
    for part in sass.split("Function : ")[1:]:
        code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S[^;]*);", part)]
        jumps = [(at, re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)) for at, text in code]
        ends = [(int(to.group(1), 16), at) for at, to in jumps if to and int(to.group(1), 16) < at]
        found[part.split()[0]] = [sum(to <= at <= end for at, _ in code) for to, end in ends]
    return found


class Machine(NamedTuple):
    target: str
    multiprocessors: int
    ghz: float
    warps: int  # resident
    blocks: int
    shared: int  # bytes
    bytes_per_us: float  # L2


MACHINES = {
    "H200": Machine("sm_90", 132, 1.7, 64, 32, 227 << 10, 5.5e6),
    "A100": Machine("sm_80", 108, 1.4, 64, 32, 163 << 10, 4e6),
    "RTX 5090": Machine("sm_120", 170, 2.4, 48, 24, 99 << 10, 6e6),
}


class Work(NamedTuple):
    """A kernel's blocks, in the order of their launch."""

    kernel: str
    warps: int  # a block
    issued: Tensor  # [blocks] instructions of all warps
    alone: Tensor  # [blocks] cycles
    bytes: float  # of all
    shared: int = 0  # bytes a block more than compiled


# ---- The sort


def sort_events(count: int, threads: int, capacity: int) -> dict[str, tuple[int, int]]:
    """How often all warps, and how often the busiest of them, do what, for a list of `count` entries
    (sort_list.cuh). A search takes as many steps as in a whole run, at most."""
    events: dict[str, tuple[int, int]] = {}

    def note(name: str, items: int, times: int = 1) -> None:
        """`times`: the block's threads, side by side, go through so many items."""
        of_warps, of_block = events.get(name, (0, 0))
        events[name] = of_warps + times * -(-items // WARP), of_block + times * -(-items // threads)

    for begin in range(0, count, capacity):
        run = min(capacity, count - begin)
        padded = max(2, 1 << (run - 1).bit_length())
        rounds = padded.bit_length() * (padded.bit_length() - 1) // 2
        note("sort_load", padded)
        note("round", threads, rounds)
        note("compare", padded // 2, rounds)
        note("sort_write", run)
    run, levels = capacity, 0
    while run < count:
        levels += 1
        note("level", threads)
        note("merge", count)
        note("search", count, run.bit_length())
        run *= 2
    if levels % 2:
        note("copy", count)
    return events


@functools.cache
def sort_costs(count: int, threads: int, capacity: int) -> tuple[float, float]:
    """Instructions of all warps, and cycles of the block."""
    events = sort_events(count, threads, capacity).items()
    issued = sum(INSTRUCTIONS[name] * of_warps for name, (of_warps, _) in events)
    return issued, sum(LATENCY[name] * of_block for name, (_, of_block) in events)


def sorting(length: Tensor, side: int, capacity: int) -> Tensor:
    """[2, tiles]: instructions, cycles."""
    lengths, index = torch.unique(length, return_inverse=True)
    costs = [sort_costs(count, side**2, capacity) for count in lengths.tolist()]
    return torch.tensor(costs, dtype=torch.double).view(-1, 2).T[:, index]


# ---- The kernels


def total(values: Tensor, tile: Tensor, tiles: int) -> Tensor:
    return torch.zeros(tiles, dtype=torch.double).index_add_(0, tile, values.double())


def blend(c: TileCounts, side: int, buckets: bool, capacity: int = SORTED_AT_ONCE) -> Work:
    tiles, warps = c.stop.shape
    i, late = INSTRUCTIONS, LATENCY
    issued, alone = sorting(c.length, side, capacity)
    loading = torch.minimum(-(-c.length // WARP), c.batches * warps)
    save = i["save"] * buckets
    issued = issued + i["tile"] * warps + i["batch"] * warps * c.batches + i["load"] * loading
    issued = issued + (i["group"] + save) * c.groups.sum(1) + i["suffix"] * buckets * c.groups.sum(1)
    issued = issued + total(
        i["evaluate"] * c.evaluated.sum(1) + i["blend"] * c.blended.sum(1), c.batch_tile, tiles
    )
    each = late["evaluate"] * c.evaluated + late["blend"] * c.blended
    each = each + (late["group"] + late["save"] * buckets) * c.batch_groups
    alone = (
        alone
        + late["tile"]
        + (late["batch"] + late["load"]) * c.batches
        + late["suffix"] * buckets * c.groups.amax(1)
    )
    alone = alone + total(each.amax(1), c.batch_tile, tiles)
    moved = 48 * int(c.length.sum()) + 48 * int(torch.minimum(c.length, c.batches * side**2).sum())
    moved += 28 * tiles * side**2 + 60 * WARP * int(c.groups.sum()) * buckets  # written, read and written
    more = 10 * (capacity - SORTED_AT_ONCE)
    return Work(f"blend_kernel<{side}, {str(buckets).lower()}>", warps, issued, alone, moved, more)


def blend_vjp(c: TileCounts, side: int) -> Work:
    tiles, warps = c.stop.shape
    i, late = INSTRUCTIONS, LATENCY
    batches = -(-c.tile_stop // WARP)
    sums = 3 * batches  # warps' worth of thirds of entries
    cleared = c.length - c.tile_stop
    issued = i["back_tile"] * warps + (i["back_batch"] * warps + i["back_load"]) * batches
    issued = issued + (i["sum"] + i["sum_warp"] * warps) * sums + i["clear"] * -(-cleared // WARP)
    taking = i["back_evaluate"] * c.back_evaluated.sum(1) + i["back_take"] * c.back_taken.sum(1)
    issued = issued + total(taking, c.back_tile, tiles)
    each = late["back_evaluate"] * c.back_evaluated + late["back_take"] * c.back_taken
    alone = (
        late["back_tile"] + late["clear"] * -(-cleared // side**2) + total(each.amax(1), c.back_tile, tiles)
    )
    sum_latency = (late["sum"] + late["sum_warp"] * warps) * -(-3 * WARP // side**2)
    alone = alone + (late["back_batch"] + late["back_load"] + sum_latency) * batches
    moved = 48 * int(c.length.sum()) + 64 * int(c.tile_stop.sum()) + 20 * tiles * side**2
    return Work(f"blend_vjp_kernel<{side}>", warps, issued, alone, moved)


def bucket_vjp(c: TileCounts, side: int) -> Work:
    i, late = INSTRUCTIONS, LATENCY
    live, steps, loads = c.bucket_live, side**2 + WARP - 1, side**2 // WARP
    idle = int(SPARE * int(c.length.sum())) // WARP + len(c.length) - len(live)

    def cost(of: dict[str, Any]) -> Tensor:
        bucket = of["bucket"] + of["pixels"] * loads * (
            0.5 + 0.5 * live
        )  # of dead ones only the stops are loaded
        return bucket + live * of["step"] * steps + of["step_take"] * c.bucket_taken

    def with_idle(costs: Tensor, each: float) -> Tensor:
        return torch.cat([costs.double(), torch.full((idle,), float(each), dtype=torch.double)])

    moved = (16 + 48 + 48) * int(c.length.sum()) + side**2 * (4 * len(live) + 44 * int(live.sum()))
    issued, alone = with_idle(cost(i), i["idle"]), with_idle(cost(late), late["idle"])
    return Work(f"bucket_vjp_kernel<{side}>", 1, issued, alone, moved)


def by_gaussians(views: Sequence[ViewCounts], side: int, numbers: int) -> list[Work]:
    """project, scatter and gaussians vjp: a thread a Gaussian, so that a warp waits for its largest one."""
    i, late = INSTRUCTIONS, LATENCY
    index = torch.cat([v.rows[side][0] + n * numbers for n, v in enumerate(views)])
    row, across = (torch.cat([v.rows[side][part] for v in views]) for part in (1, 2))
    most, warps = int(row.max()) + 1 if len(row) else 1, -(-len(views) * numbers // WARP)
    widest = torch.zeros(warps * most, dtype=torch.long)
    widest.scatter_reduce_(0, index // WARP * most + row, across, "amax")
    across, strips = widest.view(warps, most).sum(1), (widest.view(warps, most) > 0).sum(1) * (side // 4)
    slots = torch.stack([v.hits[side] for v in views])
    entries = int(slots.sum())
    slots = torch.nn.functional.pad(slots, (0, -numbers % WARP)).view(len(views), -1, WARP).amax(2).sum(0)

    def of_warps(kernel: str, issued: Tensor, alone: Tensor, moved: float) -> Work:
        issued, alone = (
            torch.nn.functional.pad(x.double(), (0, -len(x) % 4)).view(-1, 4) for x in (issued, alone)
        )
        return Work(kernel, 4, issued.sum(1), alone.amax(1), moved)

    found = []
    for kernel, once, each, moved in (
        (f"project_kernel<{side}, -1>", "project", "count_tile", 156 * len(views) * numbers),
        (f"scatter_kernel<{side}>", "scatter", "fill_tile", 64 * entries),
    ):
        issued, alone = (of[once] + of["strip"] * strips + of[each] * across for of in (i, late))
        found.append(of_warps(kernel, issued, alone, moved))
    issued, alone = (of["gaussian"] * len(views) + of["slot"] * slots for of in (i, late))
    return [*found, of_warps("gaussians_vjp_kernel<-1, false>", issued, alone, 48 * entries + 168 * numbers)]


# ---- Time


@functools.cache
def compiled() -> dict[tuple[str, str], dict[str, Any]]:
    """By kernel and target, what kernel_resources.py wrote."""
    return {(row["kernel"], row["target"]): row for row in json.loads(RESOURCES.read_text())["kernels"]}


def resident(work: Work, machine: Machine) -> int:
    """Blocks of a kernel that a multiprocessor holds at a time."""
    row = compiled()[work.kernel, machine.target]
    registers = -(-row["registers"] * WARP // 256) * 256 * work.warps
    shared = row["shared"] + work.shared + 1024
    return min(
        machine.blocks, machine.warps // work.warps, 65536 // registers, (machine.shared + 1024) // shared
    )


def microseconds(work: Work, machine: Machine, slow: float) -> float:
    """A kernel's modelled time, with latencies `slow` times as long."""
    places, shares = machine.multiprocessors, 1
    while len(work.issued) > MOST_BLOCKS * shares and places // (shares + 1) >= 8:
        shares += 1
    places //= shares
    stretch = machine.multiprocessors / (places * shares)  # of a sample on a few too few or too many
    issued, alone = work.issued[::shares].tolist(), (slow * work.alone[::shares]).tolist()
    cycles = last_end(issued, alone, places, resident(work, machine)) / stretch
    return LAUNCH_US + max(cycles / machine.ghz / 1e3, work.bytes / machine.bytes_per_us)


def last_end(issued: Sequence[float], alone: Sequence[float], places: int, blocks: int) -> float:
    """When the last block ends, cycles. A block advances by 1 / alone a cycle where the instructions that the
    multiprocessor's blocks want, sum(issued / alone), are at most ISSUED, else by so much less."""
    clock, moved, wanted = [0.0] * places, [0.0] * places, [0.0] * places
    running: list[list[tuple[float, float]]] = [[] for _ in range(places)]  # end in own time, wanted
    first = min(len(issued), places * blocks)
    for block in range(first):
        want = issued[block] / alone[block]
        heapq.heappush(running[block % places], (alone[block], want))
        wanted[block % places] += want
    ends = [(max(1.0, wanted[p] / ISSUED) * running[p][0][0], p) for p in range(min(first, places))]
    heapq.heapify(ends)
    now = 0.0
    for following in range(first, len(issued) + first):
        now, p = heapq.heappop(ends)
        own, want = heapq.heappop(running[p])
        clock[p], moved[p] = now, own
        wanted[p] -= want
        if following < len(issued):
            want = issued[following] / alone[following]
            heapq.heappush(running[p], (own + alone[following], want))
            wanted[p] += want
        if running[p]:
            heapq.heappush(ends, (now + max(1.0, wanted[p] / ISSUED) * (running[p][0][0] - own), p))
    return now


def works(views: Sequence[ViewCounts], numbers: int) -> dict[str, dict[str, list[Work]]]:
    """By plan and pass."""
    found: dict[str, dict[str, list[Work]]] = {}
    for plan, (side, buckets) in PLANS.items():
        parts = [v.tiles[side] for v in views]
        project, scatter, gaussians = by_gaussians(views, side, numbers)
        back = [bucket_vjp(c, side) if buckets else blend_vjp(c, side) for c in parts]
        found[plan] = {
            "forward": [project, scatter, joined([blend(c, side, buckets) for c in parts])],
            "backward": [joined(back), gaussians],
        }
    return found


def joined(parts: Sequence[Work]) -> Work:
    """The views' blocks, one view after the other."""
    issued, alone = (torch.cat([getattr(part, name) for part in parts]) for name in ("issued", "alone"))
    return parts[0]._replace(issued=issued, alone=alone, bytes=sum(part.bytes for part in parts))
