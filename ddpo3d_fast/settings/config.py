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
    """optimizer steps; each updates the scene once"""
    views: Annotated[int, Range(1, 64)] = 4
    """cameras per step, spread around the object"""
    noises: Annotated[int, Range(0, 64)] = 0
    """forward noises per view, or random DDIM steps with --policy latent: the actions that the policy
    compares; the UNet sees --views x --noises of them per step; 0 takes two where the policy compares them,
    else one"""
    max_timestep: Annotated[float, Range(0.0, 1.0)] = 0.98
    """timestep where annealing starts, as a fraction of the training timesteps"""
    min_timestep: Annotated[float, Range(0.0, 1.0)] = 0.02
    """timestep where annealing ends, as a fraction of the training timesteps"""
    timestep_jitter: Annotated[float, Range(0.0, 0.5)] = 0.05
    """half-width of the uniform jitter around the annealed timestep, as a fraction of the training
    timesteps"""
    camera_radius: Annotated[float, Range(1.2, 100.0)] = 3.0
    """distance of the cameras from the object's centre, in scene units; the object fits in a ball of radius
    1, and the embedded prior's training pictures are from 3"""
    fov: Annotated[float, Range(1.0, 120.0)] = 40.0
    """vertical field of view of the cameras, in degrees; the embedded prior's training pictures have 40"""
    min_elevation: Annotated[float, Range(-90.0, 90.0)] = -10.0
    """elevation of the lowest cameras, in degrees above the horizon"""
    max_elevation: Annotated[float, Range(-90.0, 90.0)] = 45.0
    """elevation of the highest cameras, in degrees above the horizon, overhead ones apart"""
    overhead_fraction: Annotated[float, Range(0.0, 1.0)] = 0.06
    """fraction of the cameras that are overhead, at 60 to 80 degrees above the horizon"""
    backgrounds: Literal["white-grey", "black-white"] = "white-grey"
    """colours behind the views: half of them white and half a random grey, or half black and half white"""
    render_scales: tuple[float, ...] = (1.0, 2.0)
    """sides of the rendered views in units of the prior's picture, each 0.1 to 16; several take equal parts
    of the run, one after the other"""
    picture_scales: tuple[float, ...] = (1.0,)
    """sides of the pictures that prior and scorer see of the views, in units of the prior's picture, each 0.1
    to 16; several take equal parts of the run, one after the other; a view must be smaller or a whole
    multiple"""

    def actions(self, compared: bool) -> int:
        """Noises of a view in a step in which the policy compares them, or does not."""
        return self.noises or (2 if compared else 1)


@dataclass(frozen=True)
class Scene:
    """The Gaussians and how they move."""

    gaussians: Annotated[int, Range(1, 10_000_000)] = 3000
    """number of Gaussians at the first step"""
    cloud: Literal["normal", "ball"] = "normal"
    """first positions of the Gaussians: normal around the centre, or uniform in a ball of radius 0.5"""
    means_rate: Annotated[float, Range(0.0, 1.0)] = 8e-3
    """learning rate of positions at the first step"""
    scales_rate: Annotated[float, Range(0.0, 1.0)] = 1e-2
    """learning rate of log-scales at the first step"""
    quats_rate: Annotated[float, Range(0.0, 1.0)] = 1e-2
    """learning rate of rotations at the first step"""
    opacities_rate: Annotated[float, Range(0.0, 10.0)] = 5e-2
    """learning rate of opacity logits at the first step"""
    colors_rate: Annotated[float, Range(0.0, 10.0)] = 4e-2
    """learning rate of colours at the first step"""
    final_rate: Annotated[float, Range(0.0, 1.0)] = 0.1
    """factor to which all learning rates but --means-rate decay, reached at the last step"""
    final_means_rate: Annotated[float, Range(0.0, 1.0)] = 0.1
    """factor to which --means-rate decays, reached where --means-decay ends"""
    means_decay: Annotated[float, Range(0.01, 1.0)] = 1.0
    """fraction of the run, from its start, in which --means-rate decays"""
    densify_every: Annotated[int, Range(0, 100_000)] = 20
    """steps between rounds that drop dead Gaussians and clone or split others; 0 turns them off"""
    densify_gradient: Annotated[float, Range(0.0, 1e6)] = 3.0
    """mean gradient on the screen (2 wide and high) from which a round clones or splits a Gaussian; 0 keeps
    their number and moves dead Gaussians onto live ones"""
    split_above: Annotated[float, Range(0.0, 10.0)] = 0.04
    """scale on the longest axis, in scene units, above which a Gaussian is split, not cloned"""
    max_gaussians: Annotated[int, Range(1, 10_000_000)] = 50000
    """number of Gaussians that cloning and splitting stop at"""
    dead_opacity: Annotated[float, Range(1e-6, 0.999)] = 0.05
    """opacity below which a Gaussian is dead"""
    carve_from: Annotated[float, Range(0.0, 1.0)] = 0.4
    """fraction of the run after which Gaussians outside the scene's own silhouettes are dead, too; 1 turns
    this off"""
    opacity_penalty: Annotated[float, Range(0.0, 1e3)] = 0.0
    """weight of the sum of all opacities in the loss; fades what no view needs"""
    alpha_penalty: Annotated[float, Range(0.0, 1e3)] = 0.5
    """weight of the sum of alpha (1 - alpha) over a view's pixels in the loss, rising through the run; makes
    pixels solid or empty, not hazy"""


@dataclass(frozen=True)
class Distillation:
    """Score distillation from the diffusion prior."""

    model: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")] = "embedded"
    """diffusion prior: `embedded`; a Stable Diffusion folder in diffusers' format; `sd15`, `sd21`, `sdxl`, or
    a hub's owner/name, which may be downloaded"""
    guidance_scale: Annotated[float, Range(0.0, 1e3)] = 2.0
    """scale of classifier-free guidance by the prompt; 1 is none"""
    residual: Literal["clean", "sds", "csd", "nfsd", "ism", "sdi"] = "clean"
    """score distillation: `clean`, towards the clean guess with weight sqrt(1 - abar); `sds`, DreamFusion's
    with weight 1 - abar; `csd`, `nfsd`, classifier and noise-free, without the injected noise; `ism`, `sdi`,
    with a noise that DDIM's inversion finds, in 4 and 9 further network evaluations"""
    guidance_rescale: Annotated[float, Range(0.0, 1.0)] = 0.0
    """degree to which the guided clean guess gets back the spread of the unguided one; 0 is not at all, 1
    fully"""
    codec: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")] = ""
    """autoencoder in place of the model's own: a folder, `taesd`, `taesdxl` or a hub's owner/name"""
    lora: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE[=SCALE]"),
    ] = ()
    """LoRA or DoRA, a safetensors file, to fuse into the model, at scale 1 if none is given; repeat the flag
    for several"""
    interpolate_views: bool = True
    """mix the prompts of the two nearest views (front, side, back) with Stable Diffusion; off, take the
    nearest view's alone"""
    runtime: Literal["auto", "tensorrt", "openvino", "onnxruntime", "torch"] = "auto"
    """library that runs the networks; auto: TensorRT on a GPU, OpenVINO or ONNX Runtime on a CPU, where they
    are there and agree with torch, else torch"""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """dtype that the prior and CLIP compute in; auto: fp16 on a GPU, bf16 on a CPU that computes in it where
    OpenVINO is there, else fp32"""


@dataclass(frozen=True)
class Reward:
    """The scorer, and the two ways it guides."""

    reward: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="NAME[=WEIGHT]"),
    ] = ()
    """reward and its weight (1 if left out; below 0 less of it is better): `embedded`, `colour:blue`, `jpeg`,
    `aesthetic`, `clip` (docs/rewards.md has all), or `module:function` of images [B, 3, H, W] and prompts;
    repeat the flag to add several (default: embedded; with Stable Diffusion aesthetic, or none where a folder
    is given and aesthetic's files are not on this machine)"""
    policy_weight: Annotated[float, Range(0.0, 1e3)] = 1.0
    """weight of the policy gradient; 0 turns it off"""
    guide_weight: Annotated[float, Range(0.0, 1e3)] = 0.1
    """size of the reward's own gradient relative to the distillation's; 0 turns it off"""
    policy: Literal["noise", "latent", "view", "scene"] = "noise"
    """action of the policy: the forward noise; the latents after one stochastic DDIM step; a smooth change of
    the rendered view; or a change of the scene itself. For the last two the reward is asked most and the
    prior not at all"""
    policy_pairs: Annotated[int, Range(2, 1024)] = 32
    """pairs of opposite changes of view or scene that --policy view and scene compare in a step, two pictures
    each for the reward, of the step's views in turn"""
    policy_moves: Literal["colors", "all"] = "colors"
    """changes of --policy scene: of colours, which takes no rendering a picture and leaves shapes
    to the prior; or opacities, scales and positions too"""
    policy_exploration: Literal["white", "lowpass"] = "lowpass"
    """noise of the actions of --policy latent: white, or low-pass"""
    policy_grid: Annotated[int, Range(1, 64)] = 2
    """points a side of the coarse grid of low-pass noise, for --policy latent and view"""
    policy_sigma: Annotated[float, Range(1e-3, 1.0)] = 0.1
    """standard deviation of the changes of --policy view, in units of the brightest value of a pixel"""
    policy_ddim_steps: Annotated[int, Range(1, 100)] = 1
    """network evaluations that lead from an action of --policy latent to the clean guess that is scored, DDIM
    steps between them"""
    policy_estimator: Literal["reinforce", "ppo"] = "reinforce"
    """gradient of --policy latent: `reinforce`, one update of a batch of actions (DDPO_SF); `ppo`, several,
    with importance ratios that are clipped (DDPO_IS)"""
    policy_updates: Annotated[int, Range(2, 100)] = 4
    """steps that one batch of actions serves with --policy-estimator ppo, all with its cameras, timesteps and
    noises"""
    policy_clip: Annotated[float, Range(0.0, 10.0)] = 1e-3
    """distance of an importance ratio from 1 at which --policy-estimator ppo clips it; the ratio is that of
    mean log-probabilities over dimensions"""
    policy_every: Annotated[int, Range(1, 100_000)] = 1
    """steps from one in which the policy asks the reward to the next, for rewards that take long; the scene
    policy goes on with what it knows in between"""
    reward_of: Literal["action", "render"] = "action"
    """picture that the policy's reward is of: the clean guess the action leads to, or the rendered view (as
    in the paper's figure)"""
    baseline: Literal["group", "running", "rewardsds"] = "group"
    """rewards that an advantage is measured against: those of the view's other actions, or a running window
    of the run's; or RewardSDS's weights of the best two and the worst two noises of a view"""
    shuffle_advantages: bool = False
    """put the advantages within a view in random order: a control for experiments, with as much noise and
    no signal"""
    reward_guidance_scale: Annotated[float, Range(0.0, 1e3)] = 0.0
    """scale of classifier-free guidance for the clean guesses that are scored; 0 takes --guidance-scale"""
    policy_max_timestep: Annotated[float, Range(0.0, 1.0)] = 0.7
    """timestep, as a fraction of the training timesteps, above which the noise and latent policies are
    off; they have their full weight from 0.2 below"""

    @property
    def updates(self) -> int:
        """Steps that one batch of actions serves, which draw the same."""
        several = self.policy == "latent" and self.policy_estimator == "ppo" and self.policy_weight > 0
        return self.policy_updates if several else 1


@dataclass(frozen=True)
class Config:
    """Everything needed to repeat a run."""

    prompt: str
    """text that says what to make, for example "a red mushroom"; needed without --config or --resume"""
    negative_prompt: str = ""
    """text that says what to stay away from"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder of the run (default: outputs/<prompt>-<seed>, and -2, -3, ... beside runs with other
    settings)"""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """seed of all random numbers; on one machine equal seeds and settings give equal assets"""
    preset: Preset = "standard"
    """name of the values for all settings that are not given; the last four are Stable Diffusion's"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """processor to run on; auto: CUDA if the machine and the installation have all it takes, else the CPU"""
    cuda_graph: bool = True
    """replay every step as a CUDA graph on a GPU; off, launch its kernels anew"""
    schedule: tyro.conf.OmitArgPrefixes[Schedule] = field(default_factory=Schedule)
    scene: tyro.conf.OmitArgPrefixes[Scene] = field(default_factory=Scene)
    distillation: tyro.conf.OmitArgPrefixes[Distillation] = field(default_factory=Distillation)
    reward: tyro.conf.OmitArgPrefixes[Reward] = field(default_factory=Reward)
