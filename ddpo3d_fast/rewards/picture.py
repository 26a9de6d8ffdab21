"""Rewards that are a formula of the picture's pixels: what in it is the object, and its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddpo3d_fast.rewards.base import RewardSettings, check_images

BORDER = 16  # of a picture's side: what its outermost pixels are taken for
CONTOUR = 0.1  # distance in RGB from the background's colour at which a pixel counts half
NOTHING = 1e-3  # of a picture's area: an object of that size counts half


class PictureReward:
    """A reward without weights: `formula` scores pictures [B, 3, H, W] by what in them is the object.

    `formula(images, weight)` -> [B], in operations of torch that autograd knows; `weight` [B, H, W] says how
    much each pixel is of the object. The gradient is that of the formula with the weight held: it paints the
    object, and neither hides it in the background nor makes one of that.
    """

    differentiable, capturable = True, True

    def __init__(
        self, name: str, formula: Callable[[Tensor, Tensor], Tensor], wanted: RewardSettings
    ) -> None:
        self.name, self.formula, self.device = name, formula, torch.device(wanted.device)
        self.runtime = f"torch {torch.__version__}, {self.device.type.upper()}"

    def prepare(self, gradient: bool) -> None:
        """Nothing to make."""

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images float32 [B, 3, H, W] in [0, 1] -> float32 [B]. ValueError or TypeError for others."""
        check_images(images, self.device)
        return self.formula(images, object_weight(images))

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Scores [B], and the gradient [B, 3, H, W] of each image's own; no graph leaves."""
        check_images(images, self.device)
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            scores = self.formula(leaf, object_weight(images))
            (gradient,) = torch.autograd.grad(scores.sum(), leaf)
        return scores.detach(), gradient


@torch.no_grad()
def object_weight(images: Tensor) -> Tensor:
    """[B, H, W] in [0, 1], how much each pixel of pictures [B, 3, H, W] is of the object: 0 where it has the
    colour of the background, near 1 from twice CONTOUR away, smooth in between.

    The background's colour is the median of the picture's border, channel by channel. A clean guess has no
    alpha, but views have a background of one colour.
    """
    rim = max(1, min(images.shape[-2:]) // BORDER)
    sides = (
        images[..., :rim, :],
        images[..., -rim:, :],
        images[..., rim:-rim, :rim],
        images[..., rim:-rim, -rim:],
    )
    background = torch.cat([side.flatten(2) for side in sides], 2).median(2).values
    square = (images - background[..., None, None]).square().sum(1)
    return square.square() / (square.square() + CONTOUR**4)


def over_object(values: Tensor, weight: Tensor) -> Tensor:
    """[B], the mean of values [B, H, W] over the object, whatever its size; towards 0 where there is next to
    none."""
    area = weight.shape[1] * weight.shape[2]
    return (weight * values).sum((1, 2)) / (weight.sum((1, 2)) + NOTHING * area)
