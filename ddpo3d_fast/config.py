"""What a run is made of: one dataclass whose fields are flags of the command line, and presets to fill it."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from ddpo3d_fast.errors import InputError

Preset = Literal["draft", "standard", "high"]


@dataclass(frozen=True)
class Schedule:
    """Steps, cameras and sizes."""

    steps: int = 200
    """updates of the scene"""
    views: int = 4
    """cameras a step, spread around the object"""
    noises: int = 2
    """forward noises a view (the actions of the noise policy); the UNet sees views x noises items a step"""
    max_timestep: float = 0.98
    """where annealing starts, as a fraction of the training timesteps"""
    min_timestep: float = 0.02
    """where annealing ends"""
    timestep_jitter: float = 0.05
    """half-width of the uniform jitter around the annealed timestep, as a fraction"""
    resolution_factors: tuple[int, ...] = (1, 2)
    """rendering size in units of the prior's picture, by equal parts of the run; averaged back to its size"""


@dataclass(frozen=True)
class Scene:
    """The Gaussians and how they move."""

    gaussians: int = 4000
    """their number, fixed through the run"""
    means_rate: float = 8e-3
    """learning rate of positions"""
    scales_rate: float = 1e-2
    """learning rate of log-scales"""
    quats_rate: float = 1e-2
    """learning rate of rotations"""
    opacities_rate: float = 5e-2
    """learning rate of opacity logits"""
    colors_rate: float = 4e-2
    """learning rate of colours"""
    final_rate: float = 0.1
    """all learning rates fall to this fraction at the last step"""
    relocate_every: int = 20
    """steps between moves of dead Gaussians onto live ones (0: never)"""
    dead_opacity: float = 0.02
    """a Gaussian below this opacity is dead"""
    carve_from: float = 0.4
    """from this fraction of the run on, what lies outside the scene's own silhouettes is dead, too"""
    opacity_penalty: float = 0.0
    """weight of the mean opacity in the loss: fades what no view needs"""
    alpha_penalty: float = 0.5
    """weight of alpha (1 - alpha) in the loss, rising through the run: solid or empty, no haze"""


@dataclass(frozen=True)
class Distillation:
    """Score distillation from the diffusion prior."""

    model: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")] = "embedded"
    """the prior: `embedded`, or a folder that holds one"""
    guidance_scale: float = 2.0
    """classifier-free guidance"""
    residual: Literal["clean", "sds"] = "clean"
    """`clean`: towards the clipped clean guess, weight sqrt(1 - abar); `sds`: DreamFusion's, 1 - abar"""


@dataclass(frozen=True)
class Reward:
    """The scorer, and the two ways it guides."""

    reward: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="NAME[=WEIGHT]", help_behavior_hint=""),
    ] = ()
    """`embedded`, or `module:function` of images [B, 3, H, W] and prompts; repeat it to add several
    (default: embedded)"""
    policy_weight: float = 1.0
    """weight of the policy gradient; 0 turns it off"""
    guide_weight: float = 0.1
    """weight of the reward's own gradient; 0 turns it off"""
    policy: Literal["noise", "ddim"] = "noise"
    """the action: the forward noise, or the latents after one stochastic DDIM step"""
    reward_of: Literal["action", "render"] = "action"
    """what is scored: the clean guess the action leads to, or the rendered view (the paper's figure)"""
    baseline: Literal["group", "running"] = "group"
    """advantages against the other actions of the view, or against a running window of the run's rewards"""
    shuffle_advantages: bool = False
    """a control for experiments: the same noise, no signal"""
    policy_max_timestep: float = 0.7
    """the policy gradient is off above this timestep and rises to full weight as it falls below"""


@dataclass(frozen=True)
class Config:
    """Everything needed to repeat a run."""

    prompt: Annotated[str, tyro.conf.arg(help_behavior_hint="(needed)")]
    """what to make, for example "a red mushroom" """
    negative_prompt: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """what to stay away from"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """run folder (default: outputs/<prompt>-<seed>)"""
    seed: int = 0
    """same seed, same machine, same asset"""
    preset: Preset = "standard"
    """fills every setting that is not given"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: CUDA if the machine and the installation have all it takes, else the CPU"""
    schedule: tyro.conf.OmitArgPrefixes[Schedule] = field(default_factory=Schedule)
    scene: tyro.conf.OmitArgPrefixes[Scene] = field(default_factory=Scene)
    distillation: tyro.conf.OmitArgPrefixes[Distillation] = field(default_factory=Distillation)
    reward: tyro.conf.OmitArgPrefixes[Reward] = field(default_factory=Reward)


_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "draft": {"schedule": {"steps": 70, "noises": 2, "views": 2}, "scene": {"gaussians": 2000}},
    "standard": {},
    "high": {"schedule": {"steps": 500}, "scene": {"gaussians": 10000}},
}


def preset(name: str, prompt: str = "") -> Config:
    """The configuration that a preset stands for. Raises InputError for an unknown name."""
    if name not in get_args(Preset):
        raise InputError(f"--preset: expected one of {', '.join(get_args(Preset))}, got {name!r}")
    changes = _PRESETS[name]
    config = Config(prompt=prompt, preset=name)  # type: ignore[arg-type]
    parts = {part: dataclasses.replace(getattr(config, part), **values) for part, values in changes.items()}
    return dataclasses.replace(config, **parts)


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "steps": (1, 100_000),
    "views": (1, 64),
    "noises": (1, 64),
    "max_timestep": (0.0, 1.0),
    "min_timestep": (0.0, 1.0),
    "timestep_jitter": (0.0, 0.5),
    "gaussians": (1, 10_000_000),
    "means_rate": (0.0, 1.0),
    "scales_rate": (0.0, 1.0),
    "quats_rate": (0.0, 1.0),
    "opacities_rate": (0.0, 10.0),
    "colors_rate": (0.0, 10.0),
    "final_rate": (0.0, 1.0),
    "relocate_every": (0, 100_000),
    "dead_opacity": (0.0, 1.0),
    "carve_from": (0.0, 1.0),
    "opacity_penalty": (0.0, 1e3),
    "alpha_penalty": (0.0, 1e3),
    "guidance_scale": (0.0, 1e3),
    "policy_weight": (0.0, 1e3),
    "guide_weight": (0.0, 1e3),
    "policy_max_timestep": (0.0, 1.0),
}


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def validate(config: Config) -> Config:
    """The configuration itself. Raises InputError, which names the flag, what was expected and what came."""
    for part in (config, config.schedule, config.scene, config.distillation, config.reward):
        for name, value in vars(part).items():
            if name in _RANGES:
                low, high = _RANGES[name]
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                    raise InputError(
                        f"{flag(name)}: expected a number from {low:g} to {high:g}, got {value!r}"
                    )
    if not config.prompt.strip():
        raise InputError("--prompt: expected some words, got nothing")
    if config.schedule.min_timestep > config.schedule.max_timestep:
        raise InputError(
            f"--min-timestep: expected at most --max-timestep ({config.schedule.max_timestep:g}), "
            f"got {config.schedule.min_timestep:g}"
        )
    factors = config.schedule.resolution_factors
    if not factors or any(not 1 <= factor <= 16 for factor in factors):
        raise InputError(f"--resolution-factors: expected whole numbers from 1 to 16, got {factors}")
    reward = config.reward
    if reward.policy_weight and reward.baseline == "group":
        if config.schedule.noises < 2:
            raise InputError(
                "--noises: expected at least 2 for a policy gradient with the group baseline, got 1"
            )
        if reward.reward_of == "render":
            raise InputError(
                "--baseline: expected running with --reward-of render (a group shares its render)"
            )
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested data, for YAML."""
    data = dataclasses.asdict(config)
    data["output"] = None if config.output is None else str(config.output)
    return data


def _part(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a mapping, got {type(data).__name__}")
    hints, values = get_type_hints(kind), {}
    for name, value in data.items():
        if name not in hints:
            raise InputError(f"{where}: unknown setting {name!r}")
        values[name] = _value(hints[name], value, f"{where}: {name}")
    return values


def _value(hint: Any, value: Any, where: str) -> Any:
    options = get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _part(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)  # YAML reads 1e-3, without a point, as text
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            raise InputError(f"{where}: expected {hint.__name__}, got {value!r}")
        return value
    if Path in options:
        return None if value is None else Path(str(value))
    if options and options[-1] is Ellipsis:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: expected a list, got {value!r}")
        return tuple(_value(options[0], item, where) for item in value)
    if value not in options:
        raise InputError(f"{where}: expected one of {', '.join(map(str, options))}, got {value!r}")
    return value


def from_dict(data: Any, where: str = "config") -> Config:
    """A configuration from `to_dict`'s data; settings left out come from its preset. Raises InputError."""
    values = _part(Config, data, where)
    config = preset(values.get("preset", "standard"), values.get("prompt", ""))
    for name in ("schedule", "scene", "distillation", "reward"):
        values[name] = dataclasses.replace(getattr(config, name), **values.get(name, {}))
    return dataclasses.replace(config, **values)
