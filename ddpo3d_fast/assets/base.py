"""What an exporter is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ddpo3d_fast.assets.raw import PlyGaussians


class Asset(NamedTuple):
    """What a run leaves, on the CPU."""

    gaussians: PlyGaussians
    turn: Callable[[int, int], Iterator[Tensor]]
    """From their number and size to white-backed frames [size, size, 3] of one turn, in [0, 1]"""


Exporter = Callable[[Path, Asset], None]
"""Writes the file, atomically; the same asset gives the same bytes. Raises InputError where it cannot."""
