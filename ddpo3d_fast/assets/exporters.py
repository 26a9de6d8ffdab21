"""The table of what a run leaves of its scene."""

from __future__ import annotations

from pathlib import Path

import torch

from ddpo3d_fast.assets.base import Asset, Exporter
from ddpo3d_fast.assets.images import contact_sheet, write_png
from ddpo3d_fast.assets.ply import write_ply
from ddpo3d_fast.assets.turntable import write_turntable

PREVIEW_SIZE, PREVIEW_GAP = 256, 4  # pixels of a view of preview.png, and between views


def ply(path: Path, asset: Asset) -> None:
    """The Gaussians, as viewers read them."""
    write_ply(path, *asset.gaussians)


def turntable(path: Path, asset: Asset) -> None:
    """One turn in 2.4 s."""
    write_turntable(path, asset.turn(72, 384))


def sheet(path: Path, asset: Asset) -> None:
    """Eight views of one turn."""
    views = torch.stack(list(asset.turn(8, PREVIEW_SIZE)))
    write_png(path, contact_sheet(views, columns=4, gap=PREVIEW_GAP))


# By the file's name in the folder of a run; written in this order.
EXPORTERS: dict[str, Exporter] = {
    "asset.ply": ply,
    "turntable.mp4": turntable,
    "preview.png": sheet,
}
