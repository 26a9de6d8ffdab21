"""The refinement of a mesh's texture: the loop of a run, with the texture in place of the Gaussians."""

from __future__ import annotations

import dataclasses

from ddpo3d_fast.build import refining, with_default_reward
from ddpo3d_fast.configure import validate
from ddpo3d_fast.control import Stopwatch, own_stream, torch_threads
from ddpo3d_fast.generate import make_steps
from ddpo3d_fast.info import choose_device
from ddpo3d_fast.journal import Observer
from ddpo3d_fast.kernels import get_num_threads
from ddpo3d_fast.meshing import Framed
from ddpo3d_fast.priors import kind_of
from ddpo3d_fast.scene import Textured
from ddpo3d_fast.settings import Config

RATE = 0.005  # Adam's, of colours in [0, 1], at the first step
HIGHEST = 0.7
"""Timestep that a refinement begins at, as a fraction of the training timesteps: the picture is there, and
more noise would hide it"""


def refinement(config: Config, steps: int) -> Config:
    """The configuration of a run, for so many steps on the texture of its mesh."""
    schedule = config.schedule
    changed = dataclasses.replace(
        schedule,
        steps=steps,
        max_timestep=max(schedule.min_timestep, min(schedule.max_timestep, HIGHEST)),
        render_scales=schedule.render_scales[-1:],
        picture_scales=schedule.picture_scales[-1:],
    )
    return dataclasses.replace(config, schedule=changed)


def refined(made: Framed, config: Config, steps: int, observer: Observer) -> tuple[Framed, int]:
    """The mesh with its texture moved as a run of this configuration moves Gaussians, and how many steps were
    made of it: fewer after Ctrl-C. Raises InputError as `generate` does."""
    config = with_default_reward(refinement(config, steps))
    small = kind_of(config.distillation.model).small and not config.reward.reward
    device = choose_device(validate(config).device)[0]
    with torch_threads(1 if small else get_num_threads()), own_stream(device):
        scene = Textured(made.shape(), made.texture, RATE, device)
        last = make_steps(refining(config, scene, device, observer, Stopwatch()))
        return made.painted(scene.texture.cpu()), last
