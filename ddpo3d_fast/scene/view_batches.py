"""Many views of one scene, as few at a time as memory asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from ddpo3d_fast.kernels import TooManyEntries
from ddpo3d_fast.scene.cameras import Cameras
from ddpo3d_fast.scene.gaussians import Gaussians

VIEWS_AT_ONCE = 8
PAIRS_AT_ONCE = 1 << 25  # of a tile and a Gaussian, where several views share a call: up to 1 GB


class View(NamedTuple):
    """One picture."""

    rgb: Tensor  # [size, size, 3], over the background
    alpha: Tensor  # [size, size]


def render_each(gaussians: Gaussians, cameras: Cameras, size: int, background: Tensor) -> Iterator[View]:
    """Renders the scene for one camera after the other; the same pictures as all at once.

    Several share a call as long as their pairs of a tile and a Gaussian, which the rasterizer counts first,
    are few.

    Args:
        size: side of a picture, pixels.
        background: [3] colour in [0, 1].

    Raises:
        TooManyEntries: of the rasterizer, which cannot render even one view.
    """
    start, together = 0, VIEWS_AT_ONCE
    while start < len(cameras):
        chunk = cameras[start : start + together]
        limit = PAIRS_AT_ONCE if len(chunk) > 1 else None
        try:
            views = gaussians.render(chunk, size, size, background.repeat(len(chunk), 1), max_entries=limit)
        except TooManyEntries as error:
            if limit is None:
                raise
            together = max(1, min(len(chunk) * limit // error.needed, len(chunk) - 1))
            continue
        start += len(chunk)
        yield from map(View, views.rgb, views.alpha)
        del views  # with its tile lists, before the next are made
