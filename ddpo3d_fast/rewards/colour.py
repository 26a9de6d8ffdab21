"""`colour:NAME`: how near the object's colour comes to a named one."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ddpo3d_fast.rewards.base import RewardSettings
from ddpo3d_fast.rewards.picture import PictureReward, over_object

# In [0, 1]. The first are those of the embedded prior's pictures.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.95, 0.50, 0.10),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.65, 0.20),
    "blue": (0.15, 0.30, 0.85),
    "purple": (0.50, 0.20, 0.70),
    "pink": (0.95, 0.50, 0.70),
    "brown": (0.45, 0.27, 0.13),
    "black": (0.10, 0.10, 0.10),
    "white": (0.95, 0.95, 0.95),
    "gray": (0.50, 0.50, 0.50),
    "grey": (0.50, 0.50, 0.50),
    "silver": (0.75, 0.75, 0.75),
    "gold": (0.85, 0.65, 0.13),
    "beige": (0.90, 0.84, 0.72),
    "olive": (0.50, 0.50, 0.10),
    "lime": (0.60, 0.90, 0.15),
    "turquoise": (0.20, 0.80, 0.75),
    "cyan": (0.10, 0.85, 0.95),
    "navy": (0.08, 0.12, 0.45),
    "violet": (0.55, 0.35, 0.90),
    "magenta": (0.90, 0.15, 0.85),
    "maroon": (0.50, 0.08, 0.15),
}
_ROUNDING = 0.02  # of the distance's tip, in RGB


def colour_reward(name: str, wanted: RewardSettings) -> PictureReward:
    """`colour:NAME`, one of COLOURS: 1 where all of the object has that colour, 0 where it is as far from it
    as black is from white."""
    return PictureReward(f"colour:{name}", partial(likeness, colour=COLOURS[name]), wanted)


def likeness(images: Tensor, weight: Tensor, colour: tuple[float, float, float]) -> Tensor:
    """[B], 1 less the mean distance in RGB from the colour over the object, in units of that from black to
    white. The plain distance, not its square: parts of another colour, as wheels, count no more than others.
    """
    channels = [(images[:, channel] - wanted).square() for channel, wanted in enumerate(colour)]
    square = torch.stack(channels).sum(0)
    distance = (square + _ROUNDING**2).sqrt() - _ROUNDING
    return over_object(1 - distance / math.sqrt(3), weight)
