"""What a run is made of: one dataclass whose fields are flags, and lines of config.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

Preset = Literal["draft", "standard", "high", "csd", "nfsd", "rescaled", "thrifty"]


class Range(NamedTuple):
    """What a number may be, both ends among it."""

    low: float
    high: float


@dataclass(frozen=True)
class Schedule:
    """Steps, cameras and sizes."""

    steps: Annotated[int, Range(1, 100_000)] = 200
    """updates of the scene"""
    views: Annotated[int, Range(1, 64)] = 4
    """cameras a step, spread around the object"""
    noises: Annotated[int, Range(1, 64)] = 2
    """forward noises a view (the actions of the noise policy); the UNet sees views x noises items a step"""
    max_timestep: Annotated[float, Range(0.0, 1.0)] = 0.98
    """where annealing starts, as a fraction of the training timesteps"""
    min_timestep: Annotated[float, Range(0.0, 1.0)] = 0.02
    """where annealing ends"""
    timestep_jitter: Annotated[float, Range(0.0, 0.5)] = 0.05
    """half-width of the uniform jitter around the annealed timestep, as a fraction"""
    camera_radius: Annotated[float, Range(1.2, 100.0)] = 3.0
    """distance of the cameras from the object's centre; the object fits in a ball of radius 1"""
    fov: Annotated[float, Range(1.0, 120.0)] = 40.0
    """vertical field of view, degrees; the embedded prior knows its pictures from 3 and 40 alone"""
    min_elevation: Annotated[float, Range(-90.0, 90.0)] = -10.0
    """lowest camera, degrees above the horizon"""
    max_elevation: Annotated[float, Range(-90.0, 90.0)] = 45.0
    """highest camera but for those overhead"""
    overhead_fraction: Annotated[float, Range(0.0, 1.0)] = 0.06
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

    gaussians: Annotated[int, Range(1, 10_000_000)] = 3000
    """their number at first"""
    cloud: Literal["normal", "ball"] = "normal"
    """where they begin: normally around the centre, or uniformly in a ball of radius 0.5"""
    means_rate: Annotated[float, Range(0.0, 1.0)] = 8e-3
    """learning rate of positions"""
    scales_rate: Annotated[float, Range(0.0, 1.0)] = 1e-2
    """learning rate of log-scales"""
    quats_rate: Annotated[float, Range(0.0, 1.0)] = 1e-2
    """learning rate of rotations"""
    opacities_rate: Annotated[float, Range(0.0, 10.0)] = 5e-2
    """learning rate of opacity logits"""
    colors_rate: Annotated[float, Range(0.0, 10.0)] = 4e-2
    """learning rate of colours"""
    final_rate: Annotated[float, Range(0.0, 1.0)] = 0.1
    """all learning rates but that of positions fall to this fraction at the last step"""
    final_means_rate: Annotated[float, Range(0.0, 1.0)] = 0.1
    """that of positions falls to this fraction"""
    means_decay: Annotated[float, Range(0.01, 1.0)] = 1.0
    """in this first part of the run"""
    densify_every: Annotated[int, Range(0, 100_000)] = 20
    """steps between rounds that drop dead Gaussians and clone or split others (0: never)"""
    densify_gradient: Annotated[float, Range(0.0, 1e6)] = 3.0
    """those whose mean gradient on the screen (2 wide and high) reaches this; 0: none, the number stays and
    dead Gaussians move onto live ones"""
    split_above: Annotated[float, Range(0.0, 10.0)] = 0.04
    """scale above which a Gaussian is split, not cloned"""
    max_gaussians: Annotated[int, Range(1, 10_000_000)] = 50000
    """densification makes no more than this"""
    dead_opacity: Annotated[float, Range(1e-6, 0.999)] = 0.05
    """a Gaussian below this opacity is dead"""
    carve_from: Annotated[float, Range(0.0, 1.0)] = 0.4
    """from this fraction of the run on, what lies outside the scene's own silhouettes is dead, too (1:
    never)"""
    opacity_penalty: Annotated[float, Range(0.0, 1e3)] = 0.0
    """weight of the sum of all opacities in the loss: fades what no view needs"""
    alpha_penalty: Annotated[float, Range(0.0, 1e3)] = 0.5
    """weight of alpha (1 - alpha) in the loss, rising through the run: solid or empty, no haze"""


@dataclass(frozen=True)
class Distillation:
    """Score distillation from the diffusion prior."""

    model: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")] = "embedded"
    """the prior: `embedded`; a Stable Diffusion folder in diffusers' format; `sd15`, `sd21`, `sdxl`, or a
    hub's owner/name, which may download it"""
    guidance_scale: Annotated[float, Range(0.0, 1e3)] = 2.0
    """classifier-free guidance"""
    residual: Literal["clean", "sds", "csd", "nfsd"] = "clean"
    """`clean`: towards the clean guess, weight sqrt(1 - abar); `sds`: DreamFusion's, 1 - abar; `csd`, `nfsd`:
    classifier and noise-free score distillation, without the injected noise"""
    guidance_rescale: Annotated[float, Range(0.0, 1.0)] = 0.0
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
    policy_weight: Annotated[float, Range(0.0, 1e3)] = 1.0
    """weight of the policy gradient; 0 turns it off"""
    guide_weight: Annotated[float, Range(0.0, 1e3)] = 0.1
    """weight of the reward's own gradient; 0 turns it off"""
    policy: Literal["noise", "ddim"] = "noise"
    """the action: the forward noise, or the latents after one stochastic DDIM step"""
    reward_of: Literal["action", "render"] = "action"
    """what is scored: the clean guess the action leads to, or the rendered view (the paper's figure)"""
    baseline: Literal["group", "running"] = "group"
    """advantages against the other actions of the view, or against a running window of the run's rewards"""
    shuffle_advantages: bool = False
    """a control for experiments: the same noise, no signal"""
    reward_guidance_scale: Annotated[float, Range(0.0, 1e3)] = 0.0
    """classifier-free guidance of the clean guesses that are scored (0: that of --guidance-scale)"""
    policy_max_timestep: Annotated[float, Range(0.0, 1.0)] = 0.7
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
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
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
