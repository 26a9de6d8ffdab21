"""What the loop asks of a representation: of Gaussians, or of a mesh's texture."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import Tensor

from ddpo3d_fast.scene.cameras import Cameras
from ddpo3d_fast.step import Step, Tensors

Verdict = Literal["kept", "changed", "again"]
"""Of a step: graphs stay valid; they are to be captured anew; they are, and the step is to be repeated"""


class Rendered(Protocol):
    """V views, and whatever their representation needs for the way back."""

    @property
    def rgb(self) -> Tensor:
        """[V, N, N, 3] over the backgrounds."""

    @property
    def alpha(self) -> Tensor:
        """[V, N, N]."""


class Representation(Protocol):
    """A scene that a run moves. It changes in place, so that CUDA graphs find it where it was, but where a
    method says otherwise."""

    def __len__(self) -> int:
        """How many rows it has: Gaussians, or texels."""

    def moved_channels(self, moves: str) -> Tensor:
        """[C] 1 for the channels of a row that --policy-moves names, 0 for the others."""

    def inputs(self, step: Step) -> Tensors:
        """What `update` reads of a step, on the CPU."""

    def render(self, cameras: Cameras, size: int, backgrounds: Tensor) -> Any:
        """`Rendered` square views of V cameras over backgrounds [V, 3]."""

    def moved(self, cameras: Cameras, size: int, picture: int, backgrounds: Tensor) -> Any:
        """What renders pictures of it a little changed (`guidance.base.Movable`) for the cameras of a step
        whose views have `size`; `update` is to be told of them."""

    def update(
        self,
        views: Any,
        grad_rgb: Tensor,
        grad_alpha: Tensor,
        inputs: Tensors,
        pull: Tensor | None = None,
        moved: Any = None,
    ) -> None:
        """One step down a gradient with respect to views of `render`, [V, N, N, 3] and [V, N, N]; `pull`
        [R, C] is added as `scene.units.pulled` has it."""

    def settle(self, step: Step) -> Verdict:
        """What follows a step, which the device has done."""

    def state(self) -> dict[str, Any]:
        """All of it for a checkpoint, on the CPU."""

    def load(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave. Raises LookupError, TypeError or ValueError for what does not fit."""
