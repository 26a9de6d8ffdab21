"""The fields that an action moves pictures or latents along: every number by itself, or smooth ones alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


@dataclass(frozen=True)
class Exploration:
    """White or low-pass noise for pictures or latents [..., C, N, N].

    Low-pass noise is what white noise on a coarse grid becomes by interpolation without higher frequencies:
    fields U c of coefficients c, with U^T U = s I. White coefficients make fields of a mean variance of 1,
    and the density of an action in their space is that of its coefficients.
    """

    knots: int
    """of the grid, a side; 0: white noise, whose coefficients are the numbers themselves"""
    patch: int = 1
    """side of the squares of pixels that the latents hold as channels: fields are smooth over the pixels"""

    def shape(self, like: Sequence[int]) -> tuple[int, int, int]:
        """Of the coefficients for [C, N, N]."""
        channels, side = like[0], like[-1]
        if not self.knots:
            return channels, side, side
        knots = min(self.knots, side * self.patch)
        return channels // self.patch**2, knots, knots

    def fields(self, coefficients: Tensor, side: int) -> Tensor:
        """[..., C, N, N] of coefficients, N being `side`."""
        if not self.knots:
            return coefficients
        basis = lowpass_basis(
            side * self.patch, coefficients.shape[-1], coefficients.device, coefficients.dtype
        )
        return pixel_unshuffle(basis @ coefficients @ basis.T, self.patch)

    def coefficients(self, fields: Tensor) -> Tensor:
        """Those of the fields nearest to [..., C, N, N] in squares."""
        if not self.knots:
            return fields
        pixels = pixel_shuffle(fields, self.patch)
        side = pixels.shape[-1]
        knots = min(self.knots, side)
        basis = lowpass_basis(side, knots, fields.device, fields.dtype)
        return basis.T @ pixels @ basis * (knots / side) ** 2


@cache
def lowpass_basis(side: int, knots: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[side, knots]: the lowest frequencies of the cosine transform (DCT-II, Ahmed et al. 1974), of
    mean square 1 / knots each. Its transpose times it is side / knots."""
    places = (torch.arange(side, dtype=torch.float64)[:, None] + 0.5) / side
    waves = (math.pi * torch.arange(knots, dtype=torch.float64) * places).cos() * math.sqrt(2)
    waves[:, 0] = 1
    return (waves / math.sqrt(knots)).to(device, dtype)
