"""Losses on the rendered views that know neither prompt nor prior."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpo3d_fast.guidance.base import Gradient, Guidance, Seen
from ddpo3d_fast.step import Step, Tensors


class AlphaPenalty(Guidance):
    """weight x alpha (1 - alpha), summed over a view's pixels as the prior sees them and rising through the
    run: solid or empty, no haze."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def inputs(self, step: Step) -> Tensors:
        area = (step.picture / step.rendered) ** 2  # of a rendered pixel, in the picture's
        return {"haziness": torch.tensor(self.weight * step.fraction * area / len(step.timesteps))}

    def __call__(self, seen: Seen, so_far: Gradient) -> Gradient:
        pull = alpha_penalty(seen.alpha, seen.inputs["haziness"])
        return Gradient(alpha=pull, metrics={"alpha": seen.alpha.mean()})


def alpha_penalty(alpha: Tensor, weight: float | Tensor) -> Tensor:
    """Gradient [V, H, W] of weight x sum alpha (1 - alpha) over alpha [V, H, W]."""
    return weight * (1 - 2 * alpha)
