"""Which plan suits which images: the CUDA rasterizer's work, counted on the CPU, and a model of its time.

    python benchmarks/rasterizer_plans.py [--cases 10k/256/4 asset:10k/256/4 ...] [--json FILE]

Needs no GPU, and measures nothing. A plan is a side of tiles, 8 or 16 px, and a backward pass with a thread a
pixel or (8b, 16b) a thread a Gaussian, in buckets; rasterize_plan_cuda (csrc/cuda/project.cu) chooses by the
sizes alone. rasterizer_cuda.py measures all plans where there is a GPU: what it finds outranks this.

Scenes: the ball of rasterizer.py; `asset:`, flat Gaussians on a surface, most of them opaque; `start:`, the
large and faint ones that generation starts with; the views around them. Counted (rasterizer_counts.py; a test
compares with the kernels as the emulator runs them): every tile's list, which 8 x 4 pixels each entry
touches, where pixels stop, hence which entries each warp evaluates and takes, groups, batches, buckets and
the steps in them that any lane takes part in, and the sort's rounds and searches.

Modelled: an event has INSTRUCTIONS, counted in the machine code, and a LATENCY that a warp alone spends on
it, since its instructions wait for one another. A block's own time is that of its slowest warp from barrier
to barrier. Blocks go in order to the first free place of the multiprocessors, as many at a time as registers
and shared memory let in, and those of one slow down together once they want more than ISSUED instructions a
cycle. A kernel takes as long as its last block or its bytes, whichever is longer, and a launch on top.

Not modelled: caches (a load takes what L2 takes), bank conflicts, collisions of atomics, clocks that change.
So the figures rank plans; they foretell no time. A plan's regret is how much longer it takes than the best
one, both passes together: on the first machine, and the most over all machines and latencies half and twice
as long, all of them or those of one part (buckets, a thread a pixel, the sort).
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rasterizer import ball_scene
from rasterizer_counts import TileCounts, ViewCounts, count_view
from rasterizer_cuda import PLANS, Case, as_json, parse_case, seen_around, significant
from rasterizer_model import (
    INSTRUCTIONS,
    ISSUED,
    LATENCY,
    LAUNCH_US,
    MACHINES,
    PARTS,
    Machine,
    Work,
    blend,
    joined,
    loop_lengths,
    microseconds,
    slowed,
    works,
)

from ddpo3d_fast.files import write_text
from ddpo3d_fast.scene.initialise import initial_ball

COUNTS, SIDES, VIEWS = (2_000, 10_000, 50_000, 100_000), (64, 128, 256, 512, 1024), (1, 4, 8)
ASSET_COUNTS = (2_000, 10_000, 50_000)  # of the other scenes, at all sides but the last
VARIANTS = [
    (machine, slow) for machine in MACHINES for slow in (1.0, 0.5, 2.0)
]  # the first is the one printed
CAPACITIES = (256, 512, 1024, 2048)  # entries that a block sorts in shared memory before it merges


# ---- A case


def asset_scene(count: int, side: int) -> dict[str, Any]:
    """As optimised Gaussians lie: flat ones on a bumpy surface, opaque, and a fifth of them faint within."""
    g = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    faint = torch.rand(count, generator=g) < 0.2
    depth = torch.where(faint, torch.rand(count, generator=g), 1.0)
    radius = 0.5 * (1 + 0.2 * torch.sin(5 * normals[:, 0]) * torch.sin(4 * normals[:, 1])) * depth
    spacing = math.sqrt(math.pi / count)  # of as many points on a sphere of radius 0.5
    sizes = spacing * (0.5 + torch.rand(count, 3, generator=g)) * torch.tensor([1.0, 1.0, 0.2])
    opacities = 0.5 + 0.49 * torch.rand(count, generator=g)
    return ball_scene(count, side) | {
        "means": normals * radius[:, None],
        "quats": torch.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0], torch.zeros(count)], 1),
        "scales": sizes,
        "opacities": torch.where(faint, 0.1 * opacities, opacities),
    }


def start_scene(count: int, side: int) -> dict[str, Any]:
    """As generation begins: a ball of large, faint Gaussians."""
    start = initial_ball(count, seed=0)
    return ball_scene(count, side) | {
        "means": start.means.detach(),
        "quats": start.quats.detach(),
        "scales": start.log_scales.detach().exp(),
        "opacities": start.logit_opacities.detach().sigmoid(),
    }


SCENES = {"ball": ball_scene, "asset": asset_scene, "start": start_scene}


class Kind(NamedTuple):
    scene: str
    case: Case

    def __str__(self) -> str:
        return f"{self.scene}:{self.case}"


def parse_kind(text: str) -> Kind:
    """A case as the command line names it, the ball where no scene is; argparse's error where it is none."""
    scene, _, case = text.rpartition(":")
    if scene not in ("", *SCENES):
        raise argparse.ArgumentTypeError(f"expected a scene of {', '.join(SCENES)}, got {scene!r}")
    return Kind(scene or "ball", parse_case(case))


def all_kinds() -> list[Kind]:
    grid = [("ball", n, side) for n in COUNTS for side in SIDES]
    grid += [(scene, n, side) for scene in ("asset", "start") for n in ASSET_COUNTS for side in SIDES[:-1]]
    return [Kind(scene, Case(n, side, views)) for scene, n, side in grid for views in VIEWS]


@functools.lru_cache(maxsize=8)
def count_camera(scene: str, gaussians: int, side: int, turn: Fraction) -> ViewCounts:
    """The view from a camera, `turn` of the way around the scene; cases share some of them."""
    seen = seen_around(SCENES[scene](gaussians, side), turn.denominator)
    return count_view(seen, seen["viewmats"][turn.numerator], seen["intrinsics"][0])


def regrets(us: dict[str, list[float]]) -> dict[str, float]:
    """By plan, how much longer both passes take than by the best plan: 0.25 is a quarter."""
    totals = {plan: sum(passes) for plan, passes in us.items()}
    return {plan: value / min(totals.values()) - 1 for plan, value in totals.items()}


def plan_times(
    work: dict[str, dict[str, list[Work]]], machine: Machine, slow: float
) -> dict[str, list[float]]:
    """By plan, microseconds of the forward and of the backward pass."""
    return {
        plan: [sum(microseconds(kernel, machine, slow) for kernel in part) for part in passes.values()]
        for plan, passes in work.items()
    }


def describe(views: Sequence[ViewCounts], kind: Kind) -> dict[str, Any]:
    """A case's row: what was counted, the modelled times, the regrets."""
    work = works(views, kind.case.gaussians)
    times = [plan_times(work, MACHINES[machine], slow) for machine, slow in VARIANTS]
    for part in PARTS:
        for factor in (0.5, 2.0):
            with slowed(part, factor):
                times.append(plan_times(works(views, kind.case.gaussians), MACHINES[VARIANTS[0][0]], 1.0))
    found = [regrets(us) for us in times]
    return {
        "case": str(kind),
        "pixels": kind.case.views * kind.case.side**2,
        "contributions": sum(v.contributions for v in views),
        "counts": {str(side): tallies([v.tiles[side] for v in views]) for side in (8, 16)},
        "us": {plan: [significant(value) for value in passes] for plan, passes in times[0].items()},
        "regret": {plan: round(value, 3) for plan, value in found[0].items()},
        "most_regret": {plan: round(max(of[plan] for of in found), 3) for plan in PLANS},
        "blend_by_capacity": {
            str(side): capacities([v.tiles[side] for v in views], side) for side in (8, 16)
        },
    }


def tallies(parts: Sequence[TileCounts]) -> dict[str, int]:
    """Of all views: entries, and what warps do with them."""
    names = ("batches", "groups", "evaluated", "blended", "back_evaluated", "back_taken")
    found = {
        "entries": sum(int(c.length.sum()) for c in parts),
        "longest": max(int(c.length.max()) for c in parts),
    }
    found |= {name: sum(int(getattr(c, name).sum()) for c in parts) for name in names}
    found |= {"buckets": sum(len(c.bucket_live) for c in parts)}
    return found | {
        name: sum(int(getattr(c, name).sum()) for c in parts) for name in ("bucket_live", "bucket_taken")
    }


def capacities(parts: Sequence[TileCounts], side: int) -> dict[str, list[float]]:
    """Microseconds of the blend kernel on every machine, by the entries that are sorted at once."""
    found = {}
    for capacity in CAPACITIES:
        work = joined([blend(c, side, False, capacity) for c in parts])
        found[str(capacity)] = [
            significant(microseconds(work, machine, 1.0)) for machine in MACHINES.values()
        ]
    return found


# ---- What is printed and written


def rule_of(case: Case) -> str | None:
    """The plan that the extension takes, if it was compiled with CUDA."""
    from ddpo3d_fast import _C

    return planned(_C, case) if hasattr(_C, "rasterize_plan_cuda") else None


def planned(library: Any, case: Case) -> str:
    sizes = {
        "num_gaussians": case.gaussians,
        "num_cameras": case.views,
        "width": case.side,
        "height": case.side,
    }
    nothing = dict.fromkeys(
        (
            "means",
            "quats",
            "scales",
            "opacities",
            "colors",
            "viewmats",
            "intrinsics",
            "backgrounds",
            "means2d_offsets",
        ),
        0,
    )
    plan = library.rasterize_plan_cuda(
        library.RasterizeParams(
            **sizes,
            **nothing,
            sh_degree=-1,
            activated=True,
            antialiased=False,
            near=0.01,
            far=1e10,
            color_stride=3,
        )
    )
    return next(name for name, sides in PLANS.items() if sides == (plan.tile, plan.buckets))


HEADER = (
    f"{'case':16} {'entries, 8 / 16 px':>19} {'longest':>11} | {'us, forward + backward, by plan':^47}"
    f" | {'regret (most)':^39} | best rule"
)


def table_row(row: dict[str, Any], rule: str | None) -> str:
    entries = " ".join(f"{row['counts'][side]['entries']:9}" for side in ("8", "16"))
    longest = " ".join(f"{row['counts'][side]['longest']:5}" for side in ("8", "16"))
    us = " ".join(f"{plan:>3} {row['us'][plan][0]:.0f}+{row['us'][plan][1]:.0f}".ljust(11) for plan in PLANS)
    lost = " ".join(f"{row['regret'][plan]:4.0%} {row['most_regret'][plan]:4.0%}" for plan in PLANS)
    best = min(row["regret"], key=row["regret"].__getitem__)
    return f"{row['case']:16} {entries} {longest} | {us} | {lost} | {best:>4} {rule or '-':>4}"


def summary(rows: Sequence[dict[str, Any]], rules: dict[str, Iterable[str | None]]) -> list[str]:
    lines = []
    for name, rule in rules.items():
        pairs = [(row, plan) for row, plan in zip(rows, rule, strict=True) if plan]
        if pairs:
            mean, worst = (
                f([row["regret"][plan] for row, plan in pairs]) for f in (lambda x: sum(x) / len(x), max)
            )
            most = max(row["most_regret"][plan] for row, plan in pairs)
            lines.append(
                f"{name}: regret {mean:.1%} on average, {worst:.0%} at most, {most:.0%} in any variant"
            )
    for side in ("8", "16"):
        for capacity in map(str, CAPACITIES):
            lost = []
            for times in (row["blend_by_capacity"][side] for row in rows):
                lost += [
                    time / min(all_of) for time, *all_of in zip(times[capacity], *times.values(), strict=True)
                ]
            mean, worst = sum(lost) / len(lost) - 1, max(lost) - 1
            lines.append(
                f"{side} px, {capacity} entries sorted at once: blending takes {mean:.1%} longer"
                f" than by the best on average, {worst:.0%} at most"
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=parse_kind, nargs="+", metavar="[SCENE:]N/PIXELS/VIEWS")
    parser.add_argument("--json", type=Path, help="write the figures here, after every case")
    parser.add_argument("--sass", type=Path, help="print the loops' lengths in cuobjdump's output, and end")
    options = parser.parse_args(arguments)
    if options.sass:
        for kernel, lengths in loop_lengths(options.sass.read_text()).items():
            print(kernel, *lengths)
        return
    report: dict[str, Any] = {
        "modelled": "no time here was measured",
        "instructions": INSTRUCTIONS,
        "latency": LATENCY,
        "issued": ISSUED,
        "launch_us": LAUNCH_US,
        "machines": {name: machine._asdict() for name, machine in MACHINES.items()},
        "rows": [],
    }
    rules = []
    print(HEADER)
    for kind in options.cases or all_kinds():
        (gaussians, side, around) = kind.case
        views = [count_camera(kind.scene, gaussians, side, Fraction(view, around)) for view in range(around)]
        report["rows"].append(describe(views, kind))
        rules.append(rule_of(kind.case))
        print(table_row(report["rows"][-1], rules[-1]), flush=True)
        if options.json:
            write_text(options.json, as_json(report))
    every = {f"always {plan}": [plan] * len(rules) for plan in PLANS}
    print(*summary(report["rows"], {"the rule": rules, **every}), sep="\n")


if __name__ == "__main__":
    main()
