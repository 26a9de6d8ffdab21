"""Losses on the rendered views that know neither prompt nor prior."""

from __future__ import annotations

from torch import Tensor


def alpha_penalty(alpha: Tensor, weight: float | Tensor) -> Tensor:
    """Gradient [V, H, W] of weight x sum alpha (1 - alpha) over alpha [V, H, W]: solid or empty, no haze."""
    return weight * (1 - 2 * alpha)
