"""What `rasterization` takes as colours, and what it makes of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import expect_shape
from .sh import camera_positions, evaluate
from .versions import version


class Colors(NamedTuple):
    values: Tensor  # [B, N, D], [B, C, N, D], or with `degree` [B, N, K, 3]
    degree: int | None  # of spherical harmonics that the kernels evaluate

    @property
    def of_camera(self) -> bool:
        """Whether each camera has its own."""
        return self.degree is None and self.values.dim() == 4


def seen_colors(
    colors: Tensor | None,  # [..., (C,) N, D] or [..., (C,) N, K, D]
    sh_degree: int | None,
    means: Tensor,  # [B, N, 3]
    viewmats: Tensor,  # [B, C, 4, 4]
    batch: torch.Size,
    in_kernels: bool,
) -> Colors:
    """Checked and evaluated, but for spherical harmonics that the kernels can evaluate, if `in_kernels`.

    ValueError for a shape that does not fit.
    """
    size, count, cameras = *means.shape[:2], viewmats.shape[1]
    if sh_degree is None:
        colors = expect_shape("colors", colors, (*batch, count, None), (*batch, cameras, count, None))
        lead = (size, count) if colors.dim() == len(batch) + 2 else (size, cameras, count)
        return Colors(colors.reshape(*lead, colors.shape[-1]), None)
    if version().startswith("1.5"):
        shared, own = (*batch, count, None, 3), (*batch, cameras, count, None, 3)
        colors = expect_shape("colors", colors, shared, own)
        of_camera = colors.dim() == len(own)
    else:  # one for all scenes of a batch
        colors = expect_shape("colors", colors, (count, None, None))
        colors = colors.expand(*batch, *colors.shape)
        of_camera = False
    if colors.shape[-2] < (sh_degree + 1) ** 2:
        raise ValueError(
            f"colors: expected at least {(sh_degree + 1) ** 2} coefficients for sh_degree {sh_degree}, "
            f"got {colors.shape[-2]}"
        )
    lead = (size, cameras, count) if of_camera else (size, count)
    coefficients = colors.reshape(*lead, *colors.shape[-2:])
    if in_kernels and not of_camera and sh_degree <= 3 and colors.shape[-1] == 3:
        return Colors(coefficients, sh_degree)
    offsets = means[:, None] - camera_positions(viewmats)[:, :, None]
    values = evaluate(sh_degree, offsets, coefficients if of_camera else coefficients[:, None])
    return Colors((values + 0.5).clamp(min=0), None)
