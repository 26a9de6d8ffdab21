"""The procedural data set: rendered material masks with class and camera, in seeded shards.

python -m ddpo3d_fast.training.dataset --output runs/dataset --individuals 330
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.files import atomic_path
from ddpo3d_fast.training.objects import CLASS_NAMES, random_object
from ddpo3d_fast.training.render import Field, render_materials

VIEWS_PER_INDIVIDUAL = 4
SHARD_INDIVIDUALS = 10  # of every class


def sample_view(rng: np.random.Generator) -> tuple[float, float]:
    """Azimuth anywhere; elevation -15 to 52 degrees, and 8 % of the time 58 to 88 (overhead). Radians."""
    low, high = (58, 88) if rng.random() < 0.08 else (-15, 52)
    return rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(low, high))


def make_shard(path: Path, seed: int, size: int = 64) -> None:
    """One .npz with masks uint8 [M, 5, size, size], class index [M] and azimuth, elevation float32 [M, 2]."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    masks, classes, views = [], [], []
    for index, name in enumerate(CLASS_NAMES):
        for _ in range(SHARD_INDIVIDUALS):
            field = Field(random_object(name, rng))
            for _ in range(VIEWS_PER_INDIVIDUAL):
                view = sample_view(rng)
                masks.append((render_materials(field, *view, size) * 255).round().to(torch.uint8).numpy())
                classes.append(index)
                views.append(view)
    with atomic_path(path) as beside:
        np.savez(
            beside, masks=np.stack(masks), classes=np.array(classes), views=np.array(views, dtype=np.float32)
        )


def _make_shard(job: tuple[Path, int, int]) -> None:
    make_shard(*job)


def load_shards(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """All shards of a folder: masks uint8 [M, 5, H, W], classes int64 [M], views float32 [M, 2]."""
    shards = [np.load(path) for path in sorted(folder.glob("shard-*.npz"))]
    if not shards:
        raise FileNotFoundError(
            f"{folder}: no shard-*.npz; make them with python -m ddpo3d_fast.training.dataset"
        )
    masks, classes, views = (
        np.concatenate([s[key] for s in shards]) for key in ("masks", "classes", "views")
    )
    return torch.from_numpy(masks), torch.from_numpy(classes).long(), torch.from_numpy(views)


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the procedural training set.")
    parser.add_argument("--output", type=Path, default=Path("runs/dataset"))
    parser.add_argument("--individuals", type=int, default=330, help="of every class, four views each")
    parser.add_argument("--seed", type=int, default=0, help="shard k has seed 1000 x this + k")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    count = math.ceil(arguments.individuals / SHARD_INDIVIDUALS)
    jobs = [
        (arguments.output / f"shard-{k:04d}.npz", 1000 * arguments.seed + k, arguments.size)
        for k in range(count)
    ]
    jobs = [job for job in jobs if not job[0].exists()]
    with torch.multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for done, _ in enumerate(pool.imap_unordered(_make_shard, jobs), 1):
            print(f"{done}/{len(jobs)} shards", flush=True)


if __name__ == "__main__":
    main()
