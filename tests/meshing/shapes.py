"""Objects made of Gaussians, to make meshes of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpo3d_fast.scene import Gaussians
from ddpo3d_fast.scene.gaussians import SH_C0

RED, BLUE = torch.tensor([0.9, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.9])


def of(means: Tensor, scale: float, colors: Tensor, opacity: float = 0.95) -> Gaussians:
    """Round Gaussians."""
    count = len(means)
    return Gaussians(
        means.float(),
        torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        torch.full((count, 3), math.log(scale)),
        torch.full((count,), math.log(opacity / (1 - opacity))),
        ((colors - 0.5) / SH_C0)[:, None].float().contiguous(),
    )


def directions(count: int) -> Tensor:
    """[count, 3] evenly over the sphere."""
    number = torch.arange(count, dtype=torch.float64)
    y = 1 - 2 * (number + 0.5) / count
    turn = 2 * math.pi * number * (math.sqrt(5) - 1) / 2
    flat = (1 - y * y).sqrt()
    return torch.stack([flat * turn.sin(), y, flat * turn.cos()], 1)


def ball(count: int = 900, radius: float = 0.6) -> Gaussians:
    """A hollow ball, red in front (z > 0) and blue behind."""
    ways = directions(count)
    return of(ways * radius, 0.05, torch.where(ways[:, 2:] > 0, RED, BLUE))


def together(*scenes: Gaussians) -> Gaussians:
    names = ("means", "quats", "log_scales", "logit_opacities", "sh")
    return Gaussians(*(torch.cat([getattr(scene, name) for scene in scenes]) for name in names))
