"""What a run is made of: one dataclass whose fields are flags of the command line, and presets to fill it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from ddpo3d_fast.errors import InputError, check_text, number

Preset = Literal["draft", "standard", "high", "csd", "nfsd", "rescaled", "thrifty"]


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
    camera_radius: float = 3.0
    """distance of the cameras from the object's centre; the object fits in a ball of radius 1"""
    fov: float = 40.0
    """vertical field of view, degrees; the embedded prior knows its pictures from 3 and 40 alone"""
    min_elevation: float = -10.0
    """lowest camera, degrees above the horizon"""
    max_elevation: float = 45.0
    """highest camera but for those overhead"""
    overhead_fraction: float = 0.06
    """of the cameras, those that look down from 60 to 80 degrees"""
    backgrounds: Literal["white-grey", "black-white"] = "white-grey"
    """behind the views: half of them white and half a random grey, or half of them black and half white"""
    render_scales: tuple[float, ...] = (1.0, 2.0)
    """side of the rendered views, in units of the prior's picture, by equal parts of the run"""
    picture_scales: tuple[float, ...] = (1.0,)
    """side of the pictures that prior and scorer see of the views, likewise; must divide that of the views,
    or be more"""


@dataclass(frozen=True)
class Scene:
    """The Gaussians and how they move."""

    gaussians: int = 3000
    """their number at first"""
    cloud: Literal["normal", "ball"] = "normal"
    """where they begin: normally around the centre, or uniformly in a ball of radius 0.5"""
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
    """all learning rates but that of positions fall to this fraction at the last step"""
    final_means_rate: float = 0.1
    """that of positions falls to this fraction"""
    means_decay: float = 1.0
    """in this first part of the run"""
    densify_every: int = 20
    """steps between rounds that drop dead Gaussians and clone or split others (0: never)"""
    densify_gradient: float = 3.0
    """those whose mean gradient on the screen (2 wide and high) reaches this; 0: none, the number stays and
    dead Gaussians move onto live ones"""
    split_above: float = 0.04
    """scale above which a Gaussian is split, not cloned"""
    max_gaussians: int = 50000
    """densification makes no more than this"""
    dead_opacity: float = 0.05
    """a Gaussian below this opacity is dead"""
    carve_from: float = 0.4
    """from this fraction of the run on, what lies outside the scene's own silhouettes is dead, too (1:
    never)"""
    opacity_penalty: float = 0.0
    """weight of the sum of all opacities in the loss: fades what no view needs"""
    alpha_penalty: float = 0.5
    """weight of alpha (1 - alpha) in the loss, rising through the run: solid or empty, no haze"""


@dataclass(frozen=True)
class Distillation:
    """Score distillation from the diffusion prior."""

    model: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")] = "embedded"
    """the prior: `embedded`; a Stable Diffusion folder in diffusers' format; `sd15`, `sd21`, `sdxl`, or a
    hub's owner/name, which may download it"""
    guidance_scale: float = 2.0
    """classifier-free guidance"""
    residual: Literal["clean", "sds", "csd", "nfsd"] = "clean"
    """`clean`: towards the clean guess, weight sqrt(1 - abar); `sds`: DreamFusion's, 1 - abar; `csd`, `nfsd`:
    classifier and noise-free score distillation, without the injected noise"""
    guidance_rescale: float = 0.0
    """how far the guided clean guess gets back the spread of the unguided one, 0 to 1"""
    codec: Annotated[str, tyro.conf.arg(metavar="NAME|DIR", help_behavior_hint="")] = ""
    """another autoencoder than the model's own: a folder, `taesd`, `taesdxl` or a hub's owner/name"""
    lora: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE[=SCALE]", help_behavior_hint=""),
    ] = ()
    """a LoRA's or DoRA's safetensors to fuse into the model; repeat it for several"""
    interpolate_views: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: a mixture)")] = True
    """with Stable Diffusion, take the nearest view's prompt (front, side, back, overhead), not a mixture of
    the two nearest"""
    runtime: Literal["auto", "tensorrt", "onnxruntime", "torch"] = "auto"
    """what runs the networks; auto: TensorRT on a GPU, ONNX Runtime on a CPU, where they are there and agree
    with torch, else torch"""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """what Stable Diffusion and CLIP compute in; auto: fp16 on a GPU, fp32 on the CPU"""


@dataclass(frozen=True)
class Reward:
    """The scorer, and the two ways it guides."""

    reward: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="NAME[=WEIGHT]", help_behavior_hint=""),
    ] = ()
    """`embedded`, `aesthetic`, `clip` (docs/rewards.md has all), or `module:function` of images [B, 3, H, W]
    and prompts; repeat it to add several (default: embedded; with Stable Diffusion aesthetic, or none where a
    folder is given and aesthetic's files are not on this machine)"""
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
    reward_guidance_scale: float = 0.0
    """classifier-free guidance of the clean guesses that are scored (0: that of --guidance-scale)"""
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
    """run folder (default: outputs/<prompt>-<seed>, and -2, -3, ... beside runs with other settings)"""
    seed: int = 0
    """same seed, same machine, same asset"""
    preset: Preset = "standard"
    """fills every setting that is not given; the last four are Stable Diffusion's"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: CUDA if the machine and the installation have all it takes, else the CPU"""
    cuda_graph: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: replay it)")] = True
    """on a GPU, launch every step anew instead of replaying it as a CUDA graph"""
    schedule: tyro.conf.OmitArgPrefixes[Schedule] = field(default_factory=Schedule)
    scene: tyro.conf.OmitArgPrefixes[Scene] = field(default_factory=Scene)
    distillation: tyro.conf.OmitArgPrefixes[Distillation] = field(default_factory=Distillation)
    reward: tyro.conf.OmitArgPrefixes[Reward] = field(default_factory=Reward)


_Changes = dict[str, Any]  # values of Config's fields; of a part's fields, where the field is a part
_EMBEDDED: dict[str, _Changes] = {
    "draft": {"schedule": {"steps": 70, "noises": 2, "views": 2}, "scene": {"gaussians": 1500}},
    "standard": {},
    "high": {"schedule": {"steps": 500}, "scene": {"gaussians": 6000}},
}
# DreamGaussian's text recipe (arXiv 2309.16653): its schedule, cameras, cloud, rates, densification and
# guidance. Ours: a second noise for the policy gradient, weaker guidance of what is scored, the posterior's
# mean for its sample, densification that ends at 0.8 of the run, and carving and the alpha penalty against
# haze.
_STABLE_DIFFUSION: _Changes = {
    "schedule": {
        "steps": 500,
        "views": 1,
        "noises": 2,
        "timestep_jitter": 0.0,
        "camera_radius": 2.5,
        "fov": 49.1,
        "min_elevation": -30.0,
        "max_elevation": 30.0,
        "overhead_fraction": 0.0,
        "backgrounds": "black-white",
        "render_scales": (0.25,) * 3 + (0.5,) * 3 + (1.0,) * 4,
    },
    "scene": {
        "gaussians": 5000,
        "cloud": "ball",
        "means_rate": 1e-2,
        "scales_rate": 5e-3,
        "quats_rate": 5e-3,
        "colors_rate": 1e-2,
        "final_rate": 1.0,
        "final_means_rate": 0.02,
        "means_decay": 0.6,
        "densify_every": 50,
        "densify_gradient": 0.01,
        "dead_opacity": 0.01,
    },
    "distillation": {"guidance_scale": 100.0, "residual": "sds"},
    "reward": {"reward_guidance_scale": 7.5},
}
_AWAY = "blurry, low quality, low resolution, dull colours, distorted, cropped"
_HALF = {"picture_scales": (0.5,) * 7 + (1.0,) * 3}
_STABLE_DIFFUSION_PRESETS: dict[str, _Changes] = {
    "draft": {"schedule": {"steps": 250, "render_scales": (0.25, 0.5), "picture_scales": (0.5,)}},
    "standard": {},
    "high": {"schedule": {"steps": 1000, "views": 2}, "scene": {"max_gaussians": 200000}},
    "csd": {"negative_prompt": _AWAY, "distillation": {"residual": "csd", "guidance_scale": 7.5}},
    "nfsd": {"negative_prompt": _AWAY, "distillation": {"residual": "nfsd", "guidance_scale": 7.5}},
    "rescaled": {"distillation": {"residual": "clean", "guidance_scale": 50.0, "guidance_rescale": 0.5}},
    "thrifty": {"schedule": _HALF},
}


def is_embedded(model: str) -> bool:
    """Whether a model's name means the embedded prior, or a folder of its kind."""
    if model == "embedded":
        return True
    try:
        index = json.loads((Path(model).expanduser() / "model_index.json").read_text())
    except (OSError, ValueError):  # what is wrong with a folder is for its loading to say
        return False
    return isinstance(index, dict) and index.get("_class_name") == "EmbeddedPrior"


def preset(name: str, prompt: str = "", model: str = "embedded") -> Config:
    """The configuration that a preset stands for with a model: the embedded prior, or one of Stable
    Diffusion's. Raises InputError for a name that the model's presets do not have."""
    embedded = is_embedded(model)
    presets = _check_preset(name, embedded)
    config = Config(prompt=prompt, preset=name)  # type: ignore[arg-type]
    for changes in (presets[name],) if embedded else (_STABLE_DIFFUSION, presets[name]):
        config = _changed(config, changes)
    return _changed(config, {"distillation": {"model": model}})


def _check_preset(name: str, embedded: bool) -> dict[str, _Changes]:
    """The presets of a kind of model, once `name` is one of them. InputError if not."""
    presets = _EMBEDDED if embedded else _STABLE_DIFFUSION_PRESETS
    if name not in presets:
        kind = "the embedded prior" if embedded else "Stable Diffusion"
        raise InputError(f"--preset: expected one of {', '.join(presets)} for {kind}, got {name!r}")
    return presets


def _changed(config: Config, changes: _Changes) -> Config:
    values = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **values)


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "steps": (1, 100_000),
    "views": (1, 64),
    "noises": (1, 64),
    "max_timestep": (0.0, 1.0),
    "min_timestep": (0.0, 1.0),
    "timestep_jitter": (0.0, 0.5),
    "camera_radius": (1.2, 100.0),
    "fov": (1.0, 120.0),
    "min_elevation": (-90.0, 90.0),
    "max_elevation": (-90.0, 90.0),
    "overhead_fraction": (0.0, 1.0),
    "gaussians": (1, 10_000_000),
    "means_rate": (0.0, 1.0),
    "scales_rate": (0.0, 1.0),
    "quats_rate": (0.0, 1.0),
    "opacities_rate": (0.0, 10.0),
    "colors_rate": (0.0, 10.0),
    "final_rate": (0.0, 1.0),
    "final_means_rate": (0.0, 1.0),
    "means_decay": (0.01, 1.0),
    "densify_every": (0, 100_000),
    "densify_gradient": (0.0, 1e6),
    "split_above": (0.0, 10.0),
    "max_gaussians": (1, 10_000_000),
    "dead_opacity": (1e-6, 0.999),
    "carve_from": (0.0, 1.0),
    "opacity_penalty": (0.0, 1e3),
    "alpha_penalty": (0.0, 1e3),
    "guidance_scale": (0.0, 1e3),
    "guidance_rescale": (0.0, 1.0),
    "reward_guidance_scale": (0.0, 1e3),
    "policy_weight": (0.0, 1e3),
    "guide_weight": (0.0, 1e3),
    "policy_max_timestep": (0.0, 1.0),
}


def adapter(text: str) -> tuple[str, float]:
    """A LoRA's file and scale from FILE[=SCALE]; what follows the last = of a file's own name is no number.

    Raises InputError for a scale that is not finite.
    """
    file, _, scale = text.rpartition("=")
    try:
        value = float(scale)
    except ValueError:
        return text, 1.0
    if not file or not math.isfinite(value):
        raise InputError(f"--lora: expected FILE or FILE=SCALE with a finite number, got {text!r}")
    return file, value


def absolute_adapter(text: str) -> str:
    """The same FILE[=SCALE] with the file's absolute path. Raises InputError as `adapter` does."""
    file, _ = adapter(text)
    return os.path.abspath(os.path.expanduser(file)) + text[len(file) :]


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
                        f"{flag(name)}: expected a number from {number(low)} to {number(high)}, got {value!r}"
                    )
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, (str, Path)):
                    check_text(flag(name), str(text))
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
    embedded = is_embedded(config.distillation.model)
    _check_preset(config.preset, embedded)  # of a file that names another model
    if embedded and set(config.schedule.picture_scales) != {1.0}:
        raise InputError(
            f"--picture-scales: expected 1 with the embedded prior, which knows one size, "
            f"got {config.schedule.picture_scales}"
        )
    if config.distillation.residual == "nfsd" and not config.negative_prompt.strip():
        raise InputError(
            "--negative-prompt: expected what to stay away from, for --residual nfsd, got nothing"
        )
    if config.distillation.residual in ("csd", "nfsd") and config.distillation.guidance_rescale:
        raise InputError(
            f"--guidance-rescale: expected 0 with --residual {config.distillation.residual}, "
            f"got {number(config.distillation.guidance_rescale)}"
        )
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
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where}: expected a path, got {value!r}")
        return None if value is None else Path(value)
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
    model = values.get("distillation", {}).get("model", "embedded")
    config = preset(values.get("preset", "standard"), values.get("prompt", ""), model)
    for name in ("schedule", "scene", "distillation", "reward"):
        values[name] = dataclasses.replace(getattr(config, name), **values.get(name, {}))
    return dataclasses.replace(config, **values)
