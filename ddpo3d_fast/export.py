"""The files that a scene becomes at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ddpo3d_fast.assets import EXPORTERS, Asset, PlyGaussians
from ddpo3d_fast.files import write_each
from ddpo3d_fast.scene import Gaussians, clean, orbit, render_each


def export(gaussians: Gaussians, folder: Path) -> list[Path]:
    """Writes a file for each of EXPORTERS, made on the CPU, and returns their paths.

    Raises InputError for those that cannot be written, once the others are.
    """
    solid = clean(gaussians.to("cpu"))
    raw = PlyGaussians(*(getattr(solid, name) for name in PlyGaussians._fields))
    asset = Asset(raw, partial(turntable_frames, solid))
    paths = {folder / name: exporter for name, exporter in EXPORTERS.items()}
    write_each(*(partial(exporter, path, asset) for path, exporter in paths.items()))
    return list(paths)


def turntable_frames(scene: Gaussians, count: int, size: int) -> Iterator[Tensor]:
    """`count` white-backed frames [size, size, 3] of one turn."""
    return (view.rgb for view in render_each(scene, orbit(count), size, torch.ones(3)))
