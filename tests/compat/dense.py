"""Blending of Gaussians on the image in plain torch, float64: every pixel against every Gaussian."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 2e-5  # relative distance to a cut-off below which float32 may decide otherwise


class Picture(NamedTuple):
    colors: Tensor  # [H, W, D]
    alpha: Tensor  # [H, W]
    depth: Tensor  # [H, W]
    safe: Tensor  # [H, W] bool: no cut-off of this pixel lies within float32's rounding


def near(value: Tensor, cut: float) -> Tensor:
    return (value - cut).abs() <= ROUNDING * cut


def blend(
    means2d: Tensor,  # [N, 2]
    conics: Tensor,  # [N, 3]
    depths: Tensor,  # [N]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, D]
    background: Tensor | None,  # [D]
    width: int,
    height: int,
    *,
    visible: Tensor,  # [N] bool
    alpha_max: float,
    through_clamp: bool = False,
    square: Tensor | None = None,  # [N] half the side of the square whose 16 px tiles a Gaussian is drawn in
) -> Picture:
    order = visible.nonzero()[:, 0]
    order = order[depths[order].float().argsort(stable=True)]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([columns, rows], -1).reshape(-1, 2)
    d = pixels[:, None] + 0.5 - means2d[order]
    a, b, c = conics[order].unbind(-1)
    sigma = 0.5 * (a * d[..., 0] ** 2 + c * d[..., 1] ** 2) + b * d[..., 0] * d[..., 1]
    raw = opacities[order] * torch.exp(-sigma)
    clamped = raw.clamp(max=alpha_max)
    if through_clamp:
        clamped = raw + (clamped - raw).detach()
    kept = (raw >= 1 / 255).detach()
    if square is not None:  # Kerbl et al. 2023: pixel centres at integers
        center, half = means2d[order].detach() - 0.5, square[order, None]
        first = torch.floor((center - half) / 16).clamp(min=0)
        last = torch.floor((center + half + 15) / 16)
        tile = (pixels // 16)[:, None]
        kept = kept & ((tile >= first) & (tile < last)).all(-1)
    alpha = torch.where(kept, clamped, torch.zeros_like(raw))
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    live = (after > 1e-4).detach()
    weight = torch.where(live, alpha * before, torch.zeros_like(alpha))
    transmittance = torch.where(live, 1 - alpha, torch.ones_like(alpha)).prod(1)
    picture = weight @ colors[order]
    if background is not None:
        picture = picture + transmittance[:, None] * background
    reached = (before > 1e-4 * (1 - ROUNDING)).detach()
    unsafe = near(raw, 1 / 255) | near(raw, alpha_max) | (near(after, 1e-4) & kept)
    shape = (height, width)
    return Picture(
        picture.reshape(*shape, -1),
        1 - transmittance.reshape(shape),
        (weight @ depths[order]).reshape(shape),
        ~(unsafe & reached).any(1).reshape(shape),
    )


def relative(got: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return float(
        (got.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp(min=1e-30)
    )
