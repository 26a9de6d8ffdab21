"""What a guidance is: from rendered views to the gradient of its loss with respect to them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ddpo3d_fast.resampling import resize, resize_vjp
from ddpo3d_fast.rewards import Scores, short_names
from ddpo3d_fast.step import Step, Tensors

Timer = Callable[[str], AbstractContextManager[None]]  # entered around each part of a step


def untimed(part: str) -> AbstractContextManager[None]:
    """No timer."""
    return nullcontext()


def told_of(name: str, scores: Scores) -> Tensors:
    """What to report of scores: their mean as NAME, and that of each reward, without its weight, as
    NAME.REWARD."""
    short = short_names(scores.each)
    each = {f"{name}.{short[reward]}": part.mean() for reward, part in scores.each.items()}
    return {name: scores.total.mean()} | each


class Movable(Protocol):
    """A scene to look at from a step's V cameras, a little changed. What its rows and channels are is the
    scene's own business, but that the first three channels are red, green and blue; a 1 in one channel shows
    about as much as in another."""

    channels: int

    @property
    def views(self) -> int:
        """V."""

    @property
    def positions(self) -> Tensor:
        """[R, 3] where its rows are, in the world."""

    @property
    def present(self) -> Tensor:
        """[R, 1]: 1, or 0 for rows that are not in use."""

    def pictures_of(self, phi: Tensor, actions: Tensor, moves: str) -> Tensor:
        """[K, 2, 3, S, S] in [0, 1], what camera k mod V sees of it changed by phi [R, F] @ actions[k], of
        actions [K, F, channels], and by the opposite. They are 0 but for what `moves` names."""

    def shown(self, values: Tensor) -> Tensor:
        """[V, F, S, S] what the cameras see of numbers of its rows [R, F] in place of colours, over zeros."""


class Seen(NamedTuple):
    """What a guidance sees of a step, on the device."""

    pictures: Tensor  # [V, 3, S, S] in [0, 1], of a size that the prior takes
    alpha: Tensor  # [V, N, N], of the rendered views
    inputs: Tensors  # of the step and of all guidances
    variant: Hashable = None  # what this guidance's `variant` has said of the step
    scene: Movable | None = None  # what the views are of

    @classmethod
    def of(cls, rgb: Tensor, alpha: Tensor, size: int, inputs: Tensors, scene: Movable | None = None) -> Seen:
        """Of rendered views [V, N, N, 3] and their alpha, in pictures of `size` pixels a side."""
        # Without room the views are NaN, which a user's reward may refuse.
        return cls(resize(rgb, size).nan_to_num(), alpha, inputs, scene=scene)


@dataclass(frozen=True)
class Gradient:
    """With respect to what is seen of the views, or to the scene itself, and a few numbers to report.
    Gradients add."""

    pictures: Tensor | None = None  # [V, 3, S, S], of each view's own loss
    alpha: Tensor | None = None  # [V, N, N], of the step's loss, which is the mean of the views'
    scene: Tensor | None = None  # [R, C] of the scene's rows, relative to the norm of all that the views give
    metrics: Tensors = field(default_factory=dict)  # [] each, on the device: reading one waits for it

    def __add__(self, other: Gradient) -> Gradient:
        return Gradient(
            _sum(self.pictures, other.pictures),
            _sum(self.alpha, other.alpha),
            _sum(self.scene, other.scene),
            self.metrics | other.metrics,
        )

    def on(self, rgb: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """That of the step's loss with respect to rendered views [V, N, N, 3] and their alpha [V, N, N]."""
        views, side = rgb.shape[:2]
        return (
            torch.zeros_like(rgb) if self.pictures is None else resize_vjp(self.pictures, side) / views,
            torch.zeros_like(alpha) if self.alpha is None else self.alpha,
        )


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one if other is None else other if one is None else one + other


class Guidance:
    """Something that pulls at the views, or at the scene. It knows nothing of what that is made of."""

    def inputs(self, step: Step) -> Tensors:
        """What its call reads besides the pictures, on the CPU; the same names and shapes in every step."""
        return {}

    def variant(self, step: Step) -> Hashable:
        """What of the step decides which kernels its call launches; a CUDA graph is captured for each."""
        return None

    def __call__(self, seen: Seen, so_far: Gradient) -> Gradient:
        """Its own gradient; `so_far` is that of the guidances before it. Device work alone, which a CUDA
        graph can hold, as far as prior and reward allow it: no wait, no copy from the host or to it."""
        raise NotImplementedError

    def state(self) -> Tensors:
        """What its calls change, in place: saved with a run, and put back where a step is repeated."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave, as lists of numbers. Raises LookupError, TypeError or ValueError for what
        is missing or does not fit."""
        for name, tensor in self.state().items():
            tensor.copy_(torch.tensor(state[name]))
