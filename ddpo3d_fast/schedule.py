"""What changes through a run: timesteps, rates, cameras, backgrounds, sizes; and views at other sizes."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor

from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.priors.base import Call, Prior
from ddpo3d_fast.resampling import scaled, scaled_vjp
from ddpo3d_fast.scene import Cameras, sample_cameras
from ddpo3d_fast.settings import Schedule


def timestep_range(schedule: Schedule, prior: Prior) -> tuple[float, float]:
    """The lowest and the highest timestep of a run, as fractions of the prior's. Where its predictions say
    nothing of the clean picture any more at `max_timestep`, the highest at which they do, with a
    FallbackWarning."""
    highest = prior.highest_timestep
    if schedule.max_timestep <= highest:
        return schedule.min_timestep, schedule.max_timestep
    warnings.warn(
        f"--max-timestep {schedule.max_timestep:g}: this model predicts the noise, which says nothing of the "
        f"picture there any more; {highest:.3f} takes its place",
        FallbackWarning,
        stacklevel=2,
    )
    return min(schedule.min_timestep, highest), highest


def timestep_at(fraction: float, count: int, low: float, high: float, jitter: Tensor) -> Tensor:
    """[V] int64 timesteps: annealed linearly from `high` to `low` (fractions of `count`), plus jitter [V]."""
    level = high + (low - high) * fraction + jitter
    return (level.clamp(low, high) * (count - 1)).long()


def cameras_at(generator: torch.Generator, schedule: Schedule) -> Cameras:
    """The cameras of a step, random."""
    return sample_cameras(
        generator,
        schedule.views,
        elevation_range=(math.radians(schedule.min_elevation), math.radians(schedule.max_elevation)),
        overhead_fraction=schedule.overhead_fraction,
        radius=schedule.camera_radius,
        fov_y=math.radians(schedule.fov),
    )


def sample_backgrounds(
    generator: torch.Generator,
    views: int,
    kind: Literal["white-grey", "black-white"] = "white-grey",
) -> Tensor:
    """[V, 3] greys. `white-grey`: half of them white and half random, as behind the embedded prior's training
    pictures; `black-white`: half of them black and half white."""
    lots, grey = torch.rand(2, views, generator=generator)
    other = grey if kind == "white-grey" else torch.zeros(views)
    return torch.where(lots < 0.5, torch.ones(views), other)[:, None].repeat(1, 3)


def resize(images: Tensor, size: int) -> Tensor:
    """[V, N, N, 3] rendered images to pictures [V, 3, size, size]: means over areas where `size` divides N,
    bilinear otherwise, which `sizes_at` allows upwards only."""
    return scaled(images.permute(0, 3, 1, 2), size)


def resize_vjp(grad: Tensor, rendered: int) -> Tensor:
    """Gradient [V, N, N, 3] with respect to images of `rendered` pixels a side from that with respect to
    their pictures [V, 3, size, size]."""
    return scaled_vjp(grad, rendered).permute(0, 2, 3, 1).contiguous()


def part_of_run(values: tuple[float, ...], fraction: float) -> float:
    """The one of `values` whose equal part of the run `fraction` lies in."""
    return values[int(fraction * len(values))]


def sizes_at(schedule: Schedule, picture_size: int, fraction: float) -> tuple[int, int]:
    """Pixels of a rendered view, and of the picture that the prior and the scorer see of it.

    Raises InputError where they do not fit: pictures of whole multiples of 8 pixels, views that are whole
    multiples of the picture or smaller than it.
    """
    rendered = round(picture_size * part_of_run(schedule.render_scales, fraction))
    seen = round(picture_size * part_of_run(schedule.picture_scales, fraction))
    if seen % 8 or seen < 8 or (rendered > seen and rendered % seen) or rendered < 1:
        raise InputError(
            f"--render-scales, --picture-scales: expected pictures of a multiple of 8 pixels and views that "
            f"are smaller or a multiple of that, got {seen} and {rendered}"
        )
    return rendered, seen


def calls_of(schedule: Schedule, groups: int) -> list[Call]:
    """The shapes that the prior will be called with, for engines that are built for theirs; `groups` are its
    predictions an item."""
    scales = dict.fromkeys(schedule.picture_scales)
    return [Call(schedule.views, schedule.noises, scale, groups) for scale in scales]
