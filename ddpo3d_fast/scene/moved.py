"""Pictures of the scene with its Gaussians a little elsewhere, larger, fainter or of other colours."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddpo3d_fast.kernels import TileCapacity
from ddpo3d_fast.resampling import resize
from ddpo3d_fast.scene.cameras import Cameras
from ddpo3d_fast.scene.gaussians import Gaussians
from ddpo3d_fast.scene.units import CHANNELS, in_raw

FIRST_CAPACITY = 1 << 16  # pairs of a tile and a Gaussian in one view, 2 MiB on a GPU


@dataclass(frozen=True)
class Moved:
    """The scene of a step, for the step's own V cameras. The scene itself stays as it is."""

    gaussians: Gaussians
    cameras: Cameras  # V
    backgrounds: Tensor  # [V, 3]
    rendered: int  # pixels of a view's side
    picture: int  # of the side of the picture made of it
    rooms: list[TileCapacity]  # of the renderings, in their order: each knows of its last one alone
    overflows: list[Tensor | None] = field(default_factory=list)
    """of each rendering so far, [1] int32 on CUDA, not 0 where there was too little room"""

    channels = CHANNELS

    @property
    def views(self) -> int:
        return len(self.cameras)

    @property
    def positions(self) -> Tensor:
        """[R, 3] of all rows of the scene's memory."""
        return self.gaussians.memory("means")

    @property
    def present(self) -> Tensor:
        """[R, 1]: 1 where there is a Gaussian, 0 in rows that only fill up the memory."""
        return (self.gaussians.memory("logit_opacities") > -torch.inf).float()[:, None]

    def picture_of(self, offsets: Tensor, view: int) -> Tensor:
        """[1, 3, S, S] in [0, 1], what one of the cameras sees of the scene moved by offsets [R, C], in
        units. On a GPU nothing waits, and without room it is black."""
        number, this = len(self.overflows), slice(view, view + 1)
        if number == len(self.rooms):
            self.rooms.append(TileCapacity(FIRST_CAPACITY))
        seen = self.gaussians.render(
            self.cameras[this],
            self.rendered,
            self.rendered,
            self.backgrounds[this],
            capacity=self.rooms[number],
            offsets=in_raw(offsets, self.gaussians.sh.shape[1]),
        )
        self.overflows.append(seen.overflow)
        return resize(seen.rgb, self.picture).nan_to_num().clamp(0, 1)

    def without_room(self, overflow: Tensor | None) -> Tensor | None:
        """[1] int32, not 0 where one of the renderings lacked room, or `overflow` is not 0; None on the
        CPU."""
        every = [each for each in (overflow, *self.overflows) if each is not None]
        return torch.stack(every).amax(0) if every else None
