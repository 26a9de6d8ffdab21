"""Pictures of the scene with its Gaussians a little elsewhere, larger, fainter or of other colours."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddpo3d_fast.kernels import TileCapacity, rasterize_features
from ddpo3d_fast.resampling import resize, scaled
from ddpo3d_fast.scene.cameras import Cameras
from ddpo3d_fast.scene.gaussians import SH_C0, Gaussians, Views
from ddpo3d_fast.scene.units import CHANNELS, COLORS, UNITS, in_raw

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

    plain: list[Views] = field(default_factory=list)  # once rendered: the scene as it is

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

    def pictures_of(self, phi: Tensor, actions: Tensor, moves: str) -> Tensor:
        """[K, 2, 3, S, S] in [0, 1], what camera k mod V sees of the scene moved by phi [R, F] @ actions[k]
        [K, F, C], in units, and by the opposite; the actions are 0 but for what `moves` names.

        On a GPU nothing waits, and without room they are black.
        """
        self._plain()  # always the first rendering, so that its room is
        if moves == "colors":
            return self._recolored(phi, actions[..., :COLORS])
        pairs = [
            torch.cat([self.picture_of(sign * (phi @ action), number % self.views) for sign in (1, -1)])
            for number, action in enumerate(actions)
        ]
        return torch.stack(pairs)

    def _recolored(self, phi: Tensor, actions: Tensor) -> Tensor:
        """The same where colours alone move, [K, F, 3]. A picture is linear in them, but where one would
        leave [0, infinity): each view is rendered once, and what it shows of each column of phi."""
        plain, fields = resize(self._plain().rgb, self.picture), self.shown(phi)
        pictures = plain.new_empty(len(actions), 2, *plain.shape[1:])
        unit = SH_C0 * UNITS["sh"][1]
        for view in range(self.views):
            mine = slice(view, None, self.views)
            change = torch.einsum("fhw,kfc->kchw", fields[view], unit * actions[mine])
            pictures[mine] = torch.stack([plain[view] + change, plain[view] - change], 1)
        return pictures.nan_to_num().clamp(0, 1)

    def shown(self, values: Tensor) -> Tensor:
        """[V, F, S, S] what the cameras see of numbers of the rows [R, F] in place of colours, over zeros. On
        a GPU nothing waits, and without room they are 0."""
        seen = self._plain()
        return scaled(rasterize_features(seen.state, values, self.rooms[0]), self.picture).nan_to_num()

    def _plain(self) -> Views:
        """All views of the scene as it is; rendered once."""
        if not self.plain:
            self.plain.append(self._render(self.cameras, self.backgrounds))
        return self.plain[0]

    def picture_of(self, offsets: Tensor, view: int) -> Tensor:
        """[1, 3, S, S] in [0, 1], what one of the cameras sees of the scene moved by offsets [R, C], in
        units. On a GPU nothing waits, and without room it is black."""
        this = slice(view, view + 1)
        raw = in_raw(offsets, self.gaussians.sh.shape[1])
        seen = self._render(self.cameras[this], self.backgrounds[this], raw)
        return resize(seen.rgb, self.picture).nan_to_num().clamp(0, 1)

    def _render(
        self, cameras: Cameras, backgrounds: Tensor, offsets: dict[str, Tensor] | None = None
    ) -> Views:
        """The next rendering of the step, in the room that is kept for it."""
        number = len(self.overflows)
        if number == len(self.rooms):
            self.rooms.append(TileCapacity(FIRST_CAPACITY))
        size, room = self.rendered, self.rooms[number]
        seen = self.gaussians.render(cameras, size, size, backgrounds, capacity=room, offsets=offsets)
        self.overflows.append(seen.overflow)
        return seen

    def without_room(self, overflow: Tensor | None) -> Tensor | None:
        """[1] int32, not 0 where one of the renderings lacked room, or `overflow` is not 0; None on the
        CPU."""
        every = [each for each in (overflow, *self.overflows) if each is not None]
        return torch.stack(every).amax(0) if every else None
