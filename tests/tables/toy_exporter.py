"""An export of one's own: how many Gaussians there are, and how large the frames of a turn."""

from pathlib import Path

from ddpo3d_fast.assets import Asset
from ddpo3d_fast.files import write_text


def count(path: Path, asset: Asset) -> None:
    (frame,) = asset.turn(1, 8)
    write_text(path, f"{len(asset.gaussians.means)} {tuple(frame.shape)}\n")
