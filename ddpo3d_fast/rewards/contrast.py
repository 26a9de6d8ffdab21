"""`contrast`: how much light and dark there is on the object."""

from __future__ import annotations

from torch import Tensor

from ddpo3d_fast.rewards.base import RewardSettings
from ddpo3d_fast.rewards.picture import PictureReward, over_object

LUMA = (0.2126, 0.7152, 0.0722)  # of red, green and blue (ITU-R BT.709)
_ROUNDING = 1e-3  # of the deviation, which has no gradient at 0


def contrast_reward(source: str, wanted: RewardSettings) -> PictureReward:
    """`contrast`: 0 where the object is of one brightness, 0.5 at the most. Takes no source."""
    return PictureReward("contrast", rms_contrast, wanted)


def rms_contrast(images: Tensor, weight: Tensor) -> Tensor:
    """[B], the standard deviation of the luma over the object: the background is no part of it."""
    luma = sum(share * images[:, channel] for channel, share in enumerate(LUMA))
    mean = (weight * luma).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-6)
    variance = over_object((luma - mean[:, None, None]).square(), weight)
    return (variance + _ROUNDING**2).sqrt() - _ROUNDING
