"""What the policies explore, and what of their estimates is signal: docs/method.md, "The policy gradient"."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class Fields:
    """[..., C, N, N] from coefficients, white, or of the G lowest frequencies over the pixels of `patch` wide
    squares."""

    def __init__(self, shape: tuple[int, ...], grid: int | None, patch: int = 1) -> None:
        channels, side = shape[0], shape[-1] * patch
        self.patch, self.waves, self.shape = patch, None, tuple(shape)
        if grid is not None:
            grid = min(grid, side)
            self.waves = torch.tensor(
                [
                    [
                        math.sqrt((2 if g else 1) / grid) * math.cos(math.pi * g * (i + 0.5) / side)
                        for g in range(grid)
                    ]
                    for i in range(side)
                ],
                dtype=torch.float64,
            )
            self.shape = (channels // patch**2, grid, grid)

    def __call__(self, c: Tensor) -> Tensor:
        """U c."""
        if self.waves is None:
            return c
        return pixel_unshuffle(torch.einsum("ig,jh,...gh->...ij", self.waves, self.waves, c), self.patch)

    def coefficients(self, fields: Tensor) -> Tensor:
        """U^T fields / s^2."""
        if self.waves is None:
            return fields
        side, grid = self.waves.shape
        found = torch.einsum("ig,jh,...ij->...gh", self.waves, self.waves, pixel_shuffle(fields, self.patch))
        return found * (grid / side) ** 2


def estimate(advantages: Tensor, c: Tensor) -> tuple[Tensor, float, float]:
    """g, its squared length and its variance, of advantages [K] of c [K, ...]."""
    terms = advantages.view(-1, *[1] * (c.dim() - 1)) * c
    g = terms.mean(0)
    variance = ((terms - g) ** 2).sum() / (len(c) * (len(c) - 1))
    return g, float((g**2).sum()), float(variance)


def counted(sums: Tensor, found: list[tuple[Tensor, float, float]]) -> Tensor:
    """S, N and 0.9 to the number of steps, after a step's estimates."""
    square, chance = (sum(each[i] for each in found) / len(found) for i in (1, 2))
    return torch.stack([0.9 * sums[0] + 0.1 * square, 0.9 * sums[1] + 0.1 * chance, 0.9 * sums[2]])


def rho(sums: Tensor, numbers: int) -> float:
    """What of estimates of so many numbers a step is signal."""
    square, chance, left = sums.tolist()
    freedom = numbers * 19 * (1 - left) / (1 + left)
    return max(0.0, 1 - (1 + 3 * math.sqrt(2 / freedom)) * chance / square) if square else 0.0


def across(own: Tensor, pull: Tensor) -> Tensor:
    """Length of what of one's own gradient is across the pull."""
    square = (pull**2).sum()
    return (own - (own * pull).sum() / square * pull).norm() if square else own.norm()
