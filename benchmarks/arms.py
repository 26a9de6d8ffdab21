"""The arms of the study: what each changes of a run's settings, and the counting of what it costs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch import Tensor

from ddpo3d_fast import build
from ddpo3d_fast.configure import validate
from ddpo3d_fast.errors import InputError, choose
from ddpo3d_fast.settings import Config, changed

NONE = {"policy_weight": 0.0, "guide_weight": 0.0}
ALONE = {"guide_weight": 0.0}
SEVEN = {"views": 1, "noises": 7}
# What an arm changes of the settings.
ARMS: dict[str, dict[str, Any]] = {
    "all": {},
    "sds": {"reward": NONE},
    "sds7": {"reward": NONE, "schedule": SEVEN},
    "guide": {"reward": {"policy_weight": 0.0}},
    "noise": {"reward": {"policy": "noise", **ALONE}},
    "noise7": {"reward": {"policy": "noise", **ALONE}, "schedule": SEVEN},
    "rewardsds": {"reward": {"policy": "noise", "baseline": "rewardsds", **ALONE}, "schedule": SEVEN},
    "unordered": {"reward": {"policy": "noise", "shuffle_advantages": True, **ALONE}},
    "latent": {"reward": {"policy": "latent", **ALONE}},
    "render": {"reward": {"policy": "latent", "reward_of": "render", "baseline": "running", **ALONE}},
    "view": {"reward": {"policy": "view", **ALONE}},
    "scene": {"reward": {"policy": "scene", **ALONE}},
    "shuffled": {"reward": {"policy": "scene", "shuffle_advantages": True, **ALONE}},
    **{name: {"reward": NONE, "distillation": {"residual": name}} for name in ("csd", "nfsd", "ism", "sdi")},
}


@contextlib.contextmanager
def counted_evaluations() -> Iterator[list[float]]:
    """Gives a list to which every prediction of the runs inside adds its noisy latents, each times half the
    number of conditions."""
    counts, load_prior = list[float](), build.load_prior

    def load(*settings: Any) -> Any:
        prior = load_prior(*settings)
        predict = prior.predict

        def counting(noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> tuple[Tensor, ...]:
            counts.append(len(noisy) * len(next(iter(conditions.values()))) / 2)
            return predict(noisy, timesteps, conditions)

        prior.predict = counting
        return prior

    with mock.patch.object(build, "load_prior", load):
        yield counts


def arm_config(config: Config, arm: str) -> Config:
    """The settings of NAME or NAME*WEIGHT. Raises InputError for one that there is not."""
    name, _, weight = arm.partition("*")
    try:
        factor = float(weight or 1)
    except ValueError:
        raise InputError(f"--arms: expected NAME or NAME*WEIGHT, got {arm!r}") from None
    config = changed(config, choose(ARMS, name, "--arms"))
    scaled = {key: factor * getattr(config.reward, key) for key in NONE}
    return validate(changed(config, {"reward": scaled}))
