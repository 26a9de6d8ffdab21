"""Many views of one scene, as few at a time as memory asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast.scene.cameras import Cameras
from ddpo3d_fast.scene.gaussians import Gaussians

VIEWS_AT_ONCE = 8
PAIRS_AT_ONCE = 1 << 25  # of a tile and a Gaussian; each takes some 20 bytes on the CPU
_TILE = 16  # pixels


class View(NamedTuple):
    """One picture."""

    rgb: Tensor  # [size, size, 3], over the background
    alpha: Tensor  # [size, size]


def render_each(gaussians: Gaussians, cameras: Cameras, size: int, background: Tensor) -> Iterator[View]:
    """Renders the scene for one camera after the other; the same pictures as all at once.

    The first is rendered alone, and says how many of the others fit into one call. Where the rasterizer finds
    them too many all the same, half as many are tried.

    Args:
        size: side of a picture, pixels.
        background: [3] colour in [0, 1].

    Raises:
        ValueError: the rasterizer cannot render even one view: too many pairs of a tile and a Gaussian.
    """
    start, together, most = 0, 1, VIEWS_AT_ONCE
    while start < len(cameras):
        chunk = cameras[start : start + together]
        try:
            views = gaussians.render(chunk, size, size, background.repeat(len(chunk), 1))
        except ValueError:
            if together == 1:
                raise
            together = most = together // 2
            continue
        start += len(chunk)
        heaviest = max(1, int(_pairs(views.radii, size).amax()))
        yield from map(View, views.rgb, views.alpha)
        del views  # with its tile lists, before the next are made
        together = max(1, min(most, PAIRS_AT_ONCE // heaviest))


def _pairs(radii: Tensor, size: int) -> Tensor:
    """[C] how many pairs of a tile and a Gaussian there are in each view, at the most."""
    across = (2 * radii.double() / _TILE).ceil() + 1
    tiles = across.clamp(max=-(-size // _TILE)).square()
    return torch.where(radii > 0, tiles, 0.0).sum(1)
