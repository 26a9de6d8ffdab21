"""`symmetry`: how much the left half of the object mirrors its right one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpo3d_fast.rewards.base import RewardSettings
from ddpo3d_fast.rewards.picture import PictureReward, over_object

_ROUNDING = 0.02  # of the distance's tip, in RGB


def symmetry_reward(source: str, wanted: RewardSettings) -> PictureReward:
    """`symmetry`: 1 where each view is its own mirror image, 0 where black meets white. Takes no source."""
    return PictureReward("symmetry", mirrored, wanted)


def mirrored(images: Tensor, weight: Tensor) -> Tensor:
    """[B], 1 less the mean distance in RGB from the pixel across the picture's middle column, in units of
    that from black to white, wherever there is object on either side."""
    square = (images - images.flip(-1)).square().sum(1)
    distance = (square + _ROUNDING**2).sqrt() - _ROUNDING
    return over_object(1 - distance / math.sqrt(3), torch.maximum(weight, weight.flip(-1)))
