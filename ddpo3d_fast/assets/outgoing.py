"""A scene on its way into a file: in the file's coordinates, piece by piece, so that large ones need little
room beside themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpo3d_fast.assets.raw import PlyGaussians, finite_logits, normalised
from ddpo3d_fast.assets.turning import to_file

BLOCK = 1 << 16  # Gaussians


@dataclass(frozen=True)
class Outgoing:
    """What a writer of a format is given."""

    gaussians: PlyGaussians
    """In this program's world, checked"""
    up: str
    """Axis of the file that points up"""

    @property
    def count(self) -> int:
        return len(self.gaussians.means)

    @property
    def bases(self) -> int:
        """Harmonics a Gaussian: 1, 4, 9 or 16."""
        return self.gaussians.sh.shape[1]

    def blocks(self, order: Tensor | None = None, size: int = BLOCK) -> Iterator[PlyGaussians]:
        """All Gaussians, some at a time, on the CPU, in the file's coordinates, with unit quaternions and
        finite opacities; in the order of indices [N], or in their own."""
        for start in range(0, self.count, size):
            chosen = slice(start, start + size) if order is None else order[start : start + size]
            block = PlyGaussians(*(column.detach().cpu().float() for column in self.gaussians.rows(chosen)))
            unit = block._replace(
                quats=normalised(block.quats), logit_opacities=finite_logits(block.logit_opacities)
            )
            yield to_file(unit, self.up)

    def without_harmonics(self, degree: int) -> Outgoing:
        """The same scene with harmonics of at most this degree."""
        kept = self.gaussians.sh[:, : (degree + 1) ** 2]
        return Outgoing(self.gaussians._replace(sh=kept), self.up)

    def means(self) -> Tensor:
        """[N, 3] positions in the file's coordinates."""
        return torch.cat([torch.empty(0, 3), *(block.means for block in self.blocks())])


def morton_order(means: Tensor) -> Tensor:
    """[N] indices that go through a scene [N, 3] along a Z-shaped curve, so that neighbours in a file are
    neighbours in space: 21 bits an axis, interleaved (Morton, 1966)."""
    if not len(means):
        return torch.zeros(0, dtype=torch.int64)
    numbers = means.double()
    low, high = numbers.amin(0, keepdim=True), numbers.amax(0, keepdim=True)
    share = (numbers - low) / torch.where(high > low, high - low, 1.0)
    keys = torch.zeros(len(means), dtype=torch.int64)
    for axis, cell in enumerate((share * ((1 << 21) - 1)).long().unbind(1)):
        for shift, mask in _SPREADS:
            cell = (cell | cell << shift) & mask
        keys |= cell << axis
    return keys.argsort(stable=True)


# Steps that move the bits of a number apart, to every third place.
_SPREADS = (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)
