"""All that a step of a run draws, on the CPU: nothing of it depends on what an earlier step has done."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Step(NamedTuple):
    """What is seen in a step, from where, and at which noise."""

    number: int  # from 1
    fraction: float  # of the run that is over when it begins
    viewmats: Tensor  # [V, 4, 4] from the world to the camera
    azimuth: Tensor  # [V] radians
    elevation: Tensor  # [V] radians
    backgrounds: Tensor  # [V, 3] in [0, 1]
    timesteps: Tensor  # [V] int64
    rendered: int  # pixels of a view's side
    picture: int  # of the side of the picture that prior and scorer see of it
    generator: torch.Generator  # of the step alone, for what follows: there is no state to carry

    def inputs(self) -> Tensors:
        """What of it the device reads."""
        grey = self.backgrounds[:, 0]
        return {
            "viewmats": self.viewmats,
            "azimuth": self.azimuth,
            "elevation": self.elevation,
            "backgrounds": self.backgrounds,
            "seen_from": torch.stack([self.azimuth, self.elevation, grey], 1),
            "timesteps": self.timesteps,
        }


def drawn_by(number: int, updates: int) -> int:
    """Number of the step that draws for step `number`: the first of its batch, of so many updates."""
    return number - (number - 1) % updates


def merged(*parts: Tensors) -> Tensors:
    """The tensors of all parts. Raises ValueError for a name that two of them have."""
    names = [name for part in parts for name in part]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"inputs of a step: expected each name once, got {', '.join(twice)} twice")
    return {name: tensor for part in parts for name, tensor in part.items()}
