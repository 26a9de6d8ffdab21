"""From a preset's name, or a file's data, to a configuration; and whether its settings go together."""

from __future__ import annotations

from typing import Any

from ddpo3d_fast.errors import InputError, choose, number
from ddpo3d_fast.priors import PriorKind, kind_of
from ddpo3d_fast.settings import Config, adapter, changed, check_values, flag, parse_values


def preset(name: str, prompt: str = "", model: str = "embedded") -> Config:
    """The configuration that a preset stands for with a model. Raises InputError for a name that presets of
    the model's kind do not have."""
    kind = kind_of(model)
    _check_preset(name, kind)
    config = Config(prompt=prompt, preset=name)  # type: ignore[arg-type]
    for changes in (kind.base, kind.presets[name], {"distillation": {"model": model}}):
        config = changed(config, changes)
    return config


def from_dict(data: Any, where: str = "config") -> Config:
    """A configuration from `to_dict`'s data; settings left out come from its preset. Raises InputError."""
    values = parse_values(data, where)
    model = values.get("distillation", {}).get("model", "embedded")
    return changed(preset(values.get("preset", "standard"), values.get("prompt", ""), model), values)


def validate(config: Config) -> Config:
    """The configuration itself. Raises InputError, which names the flag, what was expected and what came."""
    check_values(config)
    if not config.prompt.strip():
        raise InputError("--prompt: expected some words, got nothing")
    if config.schedule.min_timestep > config.schedule.max_timestep:
        raise InputError(
            f"--min-timestep: expected at most --max-timestep ({number(config.schedule.max_timestep)}), "
            f"got {number(config.schedule.min_timestep)}"
        )
    if config.schedule.min_elevation > config.schedule.max_elevation:
        raise InputError(
            f"--min-elevation: expected at most --max-elevation ({number(config.schedule.max_elevation)}), "
            f"got {number(config.schedule.min_elevation)}"
        )
    for text in config.distillation.lora:
        adapter(text)
    for name in ("render_scales", "picture_scales"):
        scales = getattr(config.schedule, name)
        if not scales or any(not 0.1 <= scale <= 16 for scale in scales):
            raise InputError(f"{flag(name)}: expected one or more numbers from 0.1 to 16, got {scales}")
    kind = kind_of(config.distillation.model)
    _check_preset(config.preset, kind)  # of a file that names another model
    kind.check(config)
    _check_objective(config)
    reward = config.reward
    if reward.policy_weight and reward.policy in ("view", "scene"):
        for name, value, only in (
            ("--reward-of", reward.reward_of, "action"),
            ("--baseline", reward.baseline, "group"),
        ):
            if value != only:
                raise InputError(f"{name}: expected {only} with --policy {reward.policy}, got {value!r}")
        if reward.policy == "view" and reward.policy_pairs < 2 * config.schedule.views:
            raise InputError(
                f"--policy-pairs: expected at least 2 for each of the {config.schedule.views} --views, "
                f"got {reward.policy_pairs}"
            )
    elif reward.policy_weight and reward.baseline != "running":
        if reward.baseline == "rewardsds" and reward.policy != "noise":
            raise InputError(
                f"--baseline: expected group or running with --policy {reward.policy}, got rewardsds"
            )
        least = {"group": 2, "rewardsds": 4}[reward.baseline]
        if config.schedule.actions(True) < least:
            raise InputError(
                f"--noises: expected at least {least} for a policy gradient with the {reward.baseline} "
                f"baseline, got {config.schedule.actions(True)}"
            )
        if reward.reward_of == "render":
            raise InputError(
                "--baseline: expected running with --reward-of render (a group shares its render)"
            )
    return config


def _check_objective(config: Config) -> None:
    from ddpo3d_fast.guidance import OBJECTIVES  # with torch, which help must not wait for

    name, rescale = config.distillation.residual, config.distillation.guidance_rescale
    objective = choose(OBJECTIVES, name, "--residual")
    if "negative" in objective.against and not config.negative_prompt.strip():
        raise InputError(
            f"--negative-prompt: expected what to stay away from, for --residual {name}, got nothing"
        )
    if rescale and not objective.rescales:
        raise InputError(f"--guidance-rescale: expected 0 with --residual {name}, got {number(rescale)}")


def _check_preset(name: str, kind: PriorKind) -> None:
    if name not in kind.presets:
        names = ", ".join(kind.presets)
        raise InputError(f"--preset: expected one of {names} for {kind.title}, got {name!r}")
