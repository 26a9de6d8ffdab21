"""How fast the rasterizer is on this machine's CPU, forward and backward, beside a tiled one in plain torch.

    python benchmarks/rasterizer.py [--quick] [--threads N] [--json FILE]

The scene: N Gaussians uniform in the unit ball, scales .01 to .03, opacities .1 to .9, seen from a distance
of 2 with a field of view of 49.1 degrees. Figures are medians of repeats; the two programs take turns. A
contribution is one Gaussian that takes part in one pixel. The floor is what the contributions alone need: the
vector instructions of one of them, two a cycle, no lane idle, at the clock that the system reports.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import tiled_reference
import torch
from timing import timed
from torch import Tensor

from ddpo3d_fast import kernels
from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import machine

COUNTS, SIDES = (2_000, 10_000, 50_000), (64, 128, 256, 512)
LANES = {"scalar": 4, "avx2": 8, "avx512": 16}
INSTRUCTIONS = {
    "forward": 25,
    "backward": 48,
}  # vector instructions of blend.h's step on one vector of pixels
GRADIENTS = ("means", "quats", "scales", "opacities", "colors", "viewmats", "backgrounds")


def ball_scene(count: int, side: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    focal = 0.5 * side / math.tan(0.5 * math.radians(49.1))
    viewmat = torch.eye(4)
    viewmat[2, 3] = 2.0
    return {
        "means": directions * torch.rand(count, 1, generator=g) ** (1 / 3),
        "quats": torch.randn(count, 4, generator=g),
        "scales": 0.01 + 0.02 * torch.rand(count, 3, generator=g),
        "opacities": 0.1 + 0.8 * torch.rand(count, generator=g),
        "colors": torch.rand(count, 3, generator=g),
        "viewmats": viewmat[None],
        "intrinsics": torch.tensor([[[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]]]),
        "width": side,
        "height": side,
        "backgrounds": torch.ones(1, 3),
    }


def run_reference(scene: dict[str, Any], weight: Tensor) -> tuple[float, float, int]:
    """Forward and backward ms of one run of the torch reference, and the contributions."""
    leaves = {
        k: v.clone().requires_grad_(k in GRADIENTS) if isinstance(v, Tensor) else v for k, v in scene.items()
    }
    forward, (image, contributions) = timed(lambda: tiled_reference.rasterize(**leaves))
    backward, _ = timed(lambda: torch.autograd.grad(image, [leaves[k] for k in GRADIENTS], weight[0]))
    return forward, backward, contributions


def measure(count: int, side: int, repeats: int, reference_repeats: int) -> dict[str, Any]:
    scene = ball_scene(count, side)
    weight = torch.randn(1, side, side, 3, generator=torch.Generator().manual_seed(1))
    times: dict[str, list[float]] = {
        name: [] for name in ("forward", "backward", "ref_forward", "ref_backward")
    }
    contributions = 0
    for repeat in range(repeats):
        forward, (_, state) = timed(lambda: kernels.rasterize_forward(**scene))
        backward, _ = timed(functools.partial(kernels.rasterize_backward, state, weight))
        times["forward"].append(forward)
        times["backward"].append(backward)
        if repeat % max(1, repeats // reference_repeats) == 0:
            forward, backward, contributions = run_reference(scene, weight)
            times["ref_forward"].append(forward)
            times["ref_backward"].append(backward)
    row: dict[str, Any] = {"gaussians": count, "side": side, "contributions": contributions}
    for name, values in times.items():
        row[f"{name}_ms"] = statistics.median(values)
        row[f"{name}_best_ms"] = min(values)
    threads, hertz = kernels.get_num_threads(), clock_hertz()
    for name in ("forward", "backward"):
        row[f"{name}_ratio"] = row[f"ref_{name}_ms"] / row[f"{name}_ms"]
        row[f"{name}_contributions_per_s"] = contributions / row[f"{name}_ms"] * 1e3
        row[f"{name}_contributions_per_s_core"] = row[f"{name}_contributions_per_s"] / threads
        if hertz:
            rate = 2 * LANES[kernels.build_info()["simd"]] * hertz * threads / INSTRUCTIONS[name]
            row[f"{name}_floor_ms"] = 1e3 * contributions / rate
    return row


def clock_hertz() -> float | None:
    """The processor's clock as the system reports it now, if it does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return 1e6 * statistics.median(clocks) if clocks else None


HEADER = (
    f"{'N':>6} {'px':>4} {'contrib.':>9}"
    f" | {'forward':>8} {'x torch':>7} {'x floor':>7} {'M/s':>6} {'/core':>6}"
    f" | {'backward':>8} {'x torch':>7} {'x floor':>7} {'M/s':>6} {'/core':>6}   (ms)"
)


def table_row(row: dict[str, Any]) -> str:
    def half(name: str) -> str:
        floor = row.get(f"{name}_floor_ms")
        distance = f"{row[f'{name}_ms'] / floor:7.1f}" if floor else f"{'-':>7}"
        rate, rate_core = (row[f"{name}_contributions_per_s{per}"] / 1e6 for per in ("", "_core"))
        ms, ratio = row[f"{name}_ms"], row[f"{name}_ratio"]
        return f"{ms:8.2f} {ratio:7.1f} {distance} {rate:6.0f} {rate_core:6.0f}"

    contributions = f"{row['contributions'] / 1e6:.2f} M"
    return (
        f"{row['gaussians']:>6} {row['side']:>4} {contributions:>9} | {half('forward')} | {half('backward')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="2k and 10k Gaussians at 64 and 256 px, few repeats"
    )
    parser.add_argument("--threads", type=int, help="of both programs; default: the cores of this process")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.threads is not None:
        kernels.set_num_threads(options.threads)
    torch.set_num_threads(kernels.get_num_threads())

    facts = {"machine": machine(), "threads": kernels.get_num_threads(), "torch": torch.__version__}
    print(f"{facts['machine']}, threads {facts['threads']}, torch {facts['torch']}")
    print(HEADER)
    rows = []
    for count in COUNTS[:2] if options.quick else COUNTS:
        for side in (64, 256) if options.quick else SIDES:
            heavy = count * side >= 10_000 * 512
            repeats, reference_repeats = (5, 1) if options.quick else (9, 1) if heavy else (15, 3)
            rows.append(measure(count, side, repeats, reference_repeats))
            print(table_row(rows[-1]), flush=True)
    if options.json:
        write_text(options.json, json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
