"""The clouds of Gaussians from which an object is grown."""

from __future__ import annotations

import math
from operator import index

import torch
from torch import Tensor

from ddpo3d_fast.scene.gaussians import SH_C0, Gaussians

DEVIATION = 0.35  # of the cloud, world units
REFERENCE_COUNT, REFERENCE_SCALE = (
    800,
    0.07,
)  # a cloud of 800 Gaussians of this size just covers its own volume
LOGIT_OPACITY = -1.5  # opacity 0.18: gradients reach the Gaussians behind
COLOR_DEVIATION = 0.025  # around grey


def initial_ball(count: int, seed: int) -> Gaussians:
    """DreamGaussian's first cloud (arXiv 2309.16653): near-grey, round Gaussians, uniform in a ball.

    The ball's radius is 0.5, every opacity 0.1.

    Args:
        count: N. A Gaussian's scale is the root of its mean squared distance to its three nearest neighbours,
            as in 3D Gaussian Splatting; with fewer neighbours to those, and alone the radius.
        seed: the cloud is a function of the arguments alone.

    Raises:
        ValueError: count below 1.
    """
    if count < 1:
        raise ValueError(f"count: expected 1 or more, got {count}")
    radius, opacity = 0.5, 0.1
    generator = torch.Generator().manual_seed(index(seed))
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    means = radius * torch.rand(count, 1, generator=generator) ** (1 / 3) * direction
    log_scales = _neighbour_distances(means, radius).log()[:, None].repeat(1, 3)
    sh = torch.zeros(count, 1, 3)
    sh[:, 0] = COLOR_DEVIATION / SH_C0 * torch.randn(count, 3, generator=generator)
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(count, 1)
    logits = torch.full((count,), math.log(opacity / (1 - opacity)))
    return Gaussians(means, quats, log_scales, logits, sh)


def _neighbour_distances(means: Tensor, alone: float) -> Tensor:
    """[N] root mean squared distance to the three nearest others."""
    neighbours = min(3, len(means) - 1)
    if not neighbours:
        return torch.full((len(means),), alone)
    found = []
    for rows in means.split(1024):  # all pairs of a few at a time: memory
        # Not by a matrix product, whose rounding is of the size of the distances.
        distances = torch.cdist(rows, means, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(neighbours + 1, largest=False).values[:, 1:]  # the first is itself
        found.append(nearest.square().mean(1).sqrt())
    return torch.cat(found).clamp_min(1e-7)


def initial_cloud(count: int, seed: int, sh_degree: int = 0, deviation: float = DEVIATION) -> Gaussians:
    """A normal cloud of near-grey, round, translucent Gaussians around the origin.

    Args:
        count: N. Scales go with N^(-1/3), so that clouds of any size cover alike.
        seed: the cloud is a function of the arguments alone.
        sh_degree: 0 to 3; coefficients above degree 0 begin at 0.
        deviation: of the positions, world units.

    Raises:
        ValueError: count below 1, sh_degree outside 0 to 3, or a deviation that is not positive.
    """
    if count < 1:
        raise ValueError(f"count: expected 1 or more, got {count}")
    if sh_degree not in (0, 1, 2, 3):
        raise ValueError(f"sh_degree: expected 0, 1, 2 or 3, got {sh_degree}")
    if not deviation > 0.0:
        raise ValueError(f"deviation: expected a positive length, got {deviation}")
    generator = torch.Generator().manual_seed(index(seed))
    means = deviation * torch.randn(count, 3, generator=generator)
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)
    scale = REFERENCE_SCALE * (deviation / DEVIATION) * (REFERENCE_COUNT / count) ** (1 / 3)
    sh = torch.zeros(count, (sh_degree + 1) ** 2, 3)
    sh[:, 0] = COLOR_DEVIATION / SH_C0 * torch.randn(count, 3, generator=generator)
    return Gaussians(
        means=means,
        quats=quats,
        log_scales=torch.full((count, 3), math.log(scale)),
        logit_opacities=torch.full((count,), LOGIT_OPACITY),
        sh=sh,
    )
