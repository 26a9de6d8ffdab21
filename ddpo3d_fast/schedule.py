"""What changes through a run: timesteps, cameras, backgrounds, sizes; and the steps that come of it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.priors.base import Call, Prior
from ddpo3d_fast.scene import Cameras, sample_cameras
from ddpo3d_fast.settings import Config, Schedule
from ddpo3d_fast.step import Step, Tensors, drawn_by


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


def calls_of(schedule: Schedule, groups: int, compares: bool) -> list[Call]:
    """The shapes that the prior will be called with, for engines that are built for theirs; `groups` are its
    predictions an item, `compares` whether a policy compares noises in some of the steps."""
    scales = dict.fromkeys(schedule.picture_scales)
    noises = dict.fromkeys(schedule.actions(compared) for compared in (compares, False))
    return [Call(schedule.views, each, scale, groups) for scale in scales for each in noises]


@dataclass(frozen=True)
class Plan:
    """What the steps of a run draw."""

    schedule: Schedule
    seed: int
    timesteps: int  # the prior's, T
    lowest: float  # timestep of the run, as a fraction of T
    highest: float
    sizes: tuple[tuple[int, int], ...]  # by step, pixels: of rendered views, of pictures
    updates: int = 1  # steps that draw the same

    @classmethod
    def of(cls, config: Config, prior: Prior) -> Plan:
        """The plan of a configuration. Raises InputError for sizes that do not fit; warns as
        `timestep_range` does."""
        schedule = config.schedule
        fractions = (number / schedule.steps for number in range(schedule.steps))
        return cls(
            schedule,
            config.seed,
            len(prior.alphas_cumprod),
            *timestep_range(schedule, prior),
            tuple(sizes_at(schedule, prior.picture_size, fraction) for fraction in fractions),
            config.reward.updates,
        )

    def draw(self, number: int) -> Step:
        """What step `number` draws, from 1: what the first step of its batch of actions draws."""
        schedule, views = self.schedule, self.schedule.views
        first = drawn_by(number, self.updates)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first)
        drawn_at = (first - 1) / schedule.steps
        cameras = cameras_at(generator, schedule)
        backgrounds = sample_backgrounds(generator, views, schedule.backgrounds)
        jitter = schedule.timestep_jitter * (2 * torch.rand(views, generator=generator) - 1)
        rendered, picture = self.sizes[first - 1]
        return Step(
            number,
            (number - 1) / schedule.steps,
            cameras.viewmats,
            cameras.azimuth,
            cameras.elevation,
            backgrounds,
            timestep_at(drawn_at, self.timesteps, self.lowest, self.highest, jitter),
            rendered,
            picture,
            generator,
        )

    def cameras(self, inputs: Tensors) -> Cameras:
        """Those of a step, from its inputs."""
        angles = inputs["azimuth"], inputs["elevation"]
        return Cameras(inputs["viewmats"], *angles, math.radians(self.schedule.fov))
