"""Scenes for tests of splat formats."""

from __future__ import annotations

import torch

from ddpo3d_fast.assets import PlyGaussians
from ddpo3d_fast.scene import Gaussians, orbit, render_each


def random_scene(count: int = 300, degree: int = 3, seed: int = 0) -> PlyGaussians:
    """Gaussians of all colours, opacities and turns in the ball of radius 1, whose quaternions have length
    1."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return PlyGaussians(
        means=numbers(count, 3) * 0.3 + 0.02,
        quats=torch.nn.functional.normalize(numbers(count, 4), dim=1),
        log_scales=numbers(count, 3) * 0.3 - 2.5,
        logit_opacities=numbers(count) * 1.5,
        sh=torch.cat([numbers(count, 1, 3) * 0.8, numbers(count, (degree + 1) ** 2 - 1, 3) * 0.1], 1),
    )


def bird(count: int = 1500) -> PlyGaussians:
    """A grey ball a little off the centre, with a red beak to the front, +z, a blue crest on top, +y, and a
    green wing to +x: who turns or mirrors it is seen."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    means = 0.45 * directions
    colors = torch.full((count, 3), 0.55) + 0.25 * torch.sin(6 * directions)
    for part, (axis, color) in enumerate(((2, (0.9, 0.1, 0.1)), (1, (0.1, 0.2, 0.9)), (0, (0.1, 0.7, 0.2)))):
        rows = slice(part * 100, part * 100 + 100)
        means[rows] *= 0.15
        means[rows, axis] += torch.linspace(0.5, 0.8, 100)
        colors[rows] = torch.tensor(color)
    return PlyGaussians(
        means=means + torch.tensor([0.03, 0.02, 0.05]),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1),
        log_scales=torch.randn(count, 3, generator=generator) * 0.25 - 3.4,
        logit_opacities=torch.randn(count, generator=generator) + 0.5,
        sh=((colors - 0.5) / 0.28209479177387814)[:, None],
    )


def pictures(scene: PlyGaussians, size: int = 128, count: int = 3) -> torch.Tensor:
    """[count, size, size, 3] over white: one turn, from the front on."""
    views = render_each(Gaussians(*scene), orbit(count), size, torch.ones(3))
    return torch.stack([view.rgb for view in views]).clamp(0, 1)


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of pictures in [0, 1], in dB; 200 where they are equal."""
    return float(-10 * torch.log10(((first - second) ** 2).mean().clamp(min=1e-20)))
