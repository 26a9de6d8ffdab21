"""Score distillation the way DreamGaussian writes it, on the schedule of our own run, to compare with.

    python benchmarks/dreamgaussian_baseline.py --prompt "a red mushroom" --model DIR [flags of generate]

After the paper (Tang et al., arXiv 2309.16653): one view at a time, a sample of the autoencoder's posterior,
one noise, classifier-free guidance, the loss summed over the latents, autograd through autoencoder and
rasterizer, torch's Adam with an eps of 1e-15. The networks are diffusers' modules as they come, in fp16 on a
GPU and fp32 on a CPU, for Stable Diffusion 1.x and 2.x; the rasterizer is gsplat on a GPU where it is
installed, else ours.

Steps, cameras, backgrounds, timesteps, sizes, guidance, first cloud, learning rates and densification are
those that `generate` has for the same flags, and so is the export. What it leaves out makes it faster:
view-dependent prompts, the reward, and carving.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpo3d_fast import kernels
from ddpo3d_fast.arguments import generate_settings, to_config
from ddpo3d_fast.build import PRECISIONS
from ddpo3d_fast.configure import validate
from ddpo3d_fast.control import Stopwatch
from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.export import export
from ddpo3d_fast.info import choose_device
from ddpo3d_fast.priors.clip_text import encode_texts
from ddpo3d_fast.priors.find import find_model
from ddpo3d_fast.priors.folder import missing_part
from ddpo3d_fast.priors.parts import load_network_part
from ddpo3d_fast.resampling import resize
from ddpo3d_fast.scene import Cameras, Gaussians, ScreenGradients
from ddpo3d_fast.scene.gaussians import PARAMETERS, SH_C0
from ddpo3d_fast.scene.splats import Rounds, first_cloud, learning_rates, rate_scales_at, strategy_of
from ddpo3d_fast.schedule import (
    cameras_at,
    sample_backgrounds,
    sizes_at,
    timestep_at,
)
from ddpo3d_fast.settings import Config

Leaves = dict[str, Tensor]  # the raw parameters of the Gaussians, which require gradients


class Rendered(NamedTuple):
    """One view, with its graph."""

    rgb: Tensor  # [1, N, N, 3]
    means2d: Tensor  # its .grad after the backward pass: [1, N, 2], of the projected means, in pixels
    visible: Tensor  # [1, N] bool


Rasterizer = Callable[..., Rendered]


class Prior(NamedTuple):
    """Stable Diffusion as diffusers has it."""

    unet: Any
    vae: Any
    alphas_cumprod: Tensor  # [T] float32
    prediction_type: str  # epsilon or v_prediction
    tokens: Tensor  # [2, 77, D] of the prompt, then of nothing or the negative prompt


def load_prior(
    folder: Path, prompt: str, negative: str, device: torch.device, dtype: torch.dtype | None
) -> Prior:
    """The networks of a folder on a device, and the prompt encoded; dtype None: fp16 on CUDA, else fp32.

    Raises InputError for a folder that is no Stable Diffusion 1.x or 2.x.
    """
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    if missing := missing_part(folder):
        raise InputError(missing)
    if (folder / "text_encoder_2").is_dir():
        raise InputError(f"--model: expected Stable Diffusion 1.x or 2.x, for the baseline, got XL: {folder}")
    scheduler = library("diffusers", str(folder)).DDPMScheduler.from_pretrained(folder / "scheduler")
    unet, vae = (
        nn.Module.to(load_network_part("diffusers", kind, folder / name, dtype), device)
        for name, kind in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL"))
    )
    tokens = encode_texts(folder, [prompt, negative], device, dtype)["tokens"]
    abar = scheduler.alphas_cumprod.to(device)
    return Prior(unet, vae, abar, scheduler.config.prediction_type, tokens)


def distillation_loss(
    prior: Prior,
    picture: Tensor,
    timestep: Tensor,
    guidance_scale: float,
    noise: Tensor,
    posterior_noise: Tensor,
) -> Tensor:
    """A loss [] whose gradient on the latents z is w(t) (eps^ - eps), w = 1 - abar (DreamFusion, eq. 3).

    Args:
        picture: [1, 3, H, W] in [0, 1], with its graph.
        timestep: [1] int64.
        noise: [1, C, h, w] eps.
        posterior_noise: [1, C, h, w], what the autoencoder's posterior is sampled with.
    """
    dtype = prior.unet.dtype
    posterior = prior.vae.encode((2 * picture - 1).to(dtype)).latent_dist
    latents = (posterior.mean + posterior.std * posterior_noise) * prior.vae.config.scaling_factor
    tokens = prior.tokens.to(dtype)
    with torch.no_grad():
        abar = prior.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
        items = noisy.repeat(2, 1, 1, 1).to(dtype)
        predictions = prior.unet(items, timestep.repeat(2), encoder_hidden_states=tokens).sample.float()
        wanted, unwanted = predictions.chunk(2)
        guided = unwanted + guidance_scale * (wanted - unwanted)
        if prior.prediction_type == "v_prediction":
            guided = abar.sqrt() * guided + (1 - abar).sqrt() * noisy
        target = latents - (1 - abar) * (guided - noise)
    return 0.5 * nn.functional.mse_loss(latents.float(), target, reduction="sum")


def leaves_of(gaussians: Gaussians) -> Leaves:
    return {name: getattr(gaussians, name).clone().requires_grad_() for name in PARAMETERS}


def render(
    leaves: Leaves, camera: Cameras, side: int, background: Tensor, rasterizer: Rasterizer
) -> Rendered:
    """What one camera sees, `side` pixels wide and high; `background` [1, 3]."""
    return rasterizer(
        means=leaves["means"],
        quats=leaves["quats"],
        scales=leaves["log_scales"].exp(),
        opacities=leaves["logit_opacities"].sigmoid(),
        colors=(0.5 + SH_C0 * leaves["sh"][:, 0]).clamp_min(0),
        viewmats=camera.viewmats,
        intrinsics=camera.intrinsics(side, side),
        width=side,
        height=side,
        backgrounds=background,
    )


def our_rasterizer(**scene: Any) -> Rendered:
    offsets = scene["means"].new_zeros(1, len(scene["means"]), 2, requires_grad=True)
    out = kernels.rasterize(**scene, means2d_offsets=offsets)
    return Rendered(out.rgb, offsets, out.radii > 0)


def gsplat_rasterizer(intrinsics: Tensor, **scene: Any) -> Rendered:
    """Not packed, which is the faster for few Gaussians."""
    gsplat = importlib.import_module("gsplat")
    rgb, _, meta = gsplat.rasterization(**scene, Ks=intrinsics, near_plane=0.01, packed=False)
    meta["means2d"].retain_grad()
    radii = meta["radii"].reshape(1, len(scene["means"]), -1)  # one or, in later versions, two an axis
    return Rendered(rgb, meta["means2d"], (radii > 0).all(-1))


def choose_rasterizer(device: torch.device) -> tuple[str, Rasterizer]:
    if device.type == "cuda" and importlib.util.find_spec("gsplat"):
        return "gsplat", gsplat_rasterizer
    return "ours", our_rasterizer


def optimise(config: Config, prior: Prior, gaussians: Gaussians, rasterizer: Rasterizer) -> Gaussians:
    """The scene after the steps of `config`, which begin with `gaussians`."""
    schedule, scene, device = config.schedule, config.scene, gaussians.device
    leaves, rates = leaves_of(gaussians), vars(learning_rates(scene))
    optimizer, screen = make_optimizer(leaves), ScreenGradients(len(gaussians), device)
    factor, channels = 2 ** (len(prior.vae.config.block_out_channels) - 1), prior.vae.config.latent_channels
    picture_size = factor * prior.unet.config.sample_size
    torch.manual_seed(config.seed)
    for step in range(1, schedule.steps + 1):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        fraction = (step - 1) / schedule.steps
        cameras = cameras_at(generator, schedule).to(device)
        backgrounds = sample_backgrounds(generator, schedule.views, schedule.backgrounds).to(device)
        jitter = schedule.timestep_jitter * (2 * torch.rand(schedule.views, generator=generator) - 1)
        low, high = schedule.min_timestep, schedule.max_timestep
        timesteps = timestep_at(fraction, len(prior.alphas_cumprod), low, high, jitter).to(device)
        rendered, seen = sizes_at(schedule, picture_size, fraction)
        for group, scale in zip(
            optimizer.param_groups, rate_scales_at(fraction, scene).tolist(), strict=True
        ):
            group["lr"] = rates[group["name"]] * scale
        for view in range(schedule.views):
            one = slice(view, view + 1)
            image, means2d, visible = render(leaves, cameras[one], rendered, backgrounds[one], rasterizer)
            noises = torch.randn(2, 1, channels, seen // factor, seen // factor, device=device)
            loss = distillation_loss(
                prior, resize(image, seen), timesteps[one], config.distillation.guidance_scale, *noises
            )
            (loss / schedule.views).backward()
            screen.add(means2d.grad * schedule.views, visible, rendered)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        grows = scene.densify_gradient and scene.densify_every and step % scene.densify_every == 0
        if grows and fraction < Rounds.until:
            now = gaussians_of(leaves, optimizer)
            more = strategy_of(scene)(now, screen.mean(), generator)
            leaves = leaves_of(more)
            optimizer, screen = make_optimizer(leaves, more, step), ScreenGradients(len(more), device)
    return gaussians_of(leaves, optimizer)


def make_optimizer(
    leaves: Leaves, gaussians: Gaussians | None = None, steps: int = 0
) -> torch.optim.Optimizer:
    """Adam, as it is after some steps with the moments of `gaussians`."""
    optimizer = torch.optim.Adam([{"params": [leaves[name]], "name": name} for name in PARAMETERS], eps=1e-15)
    if gaussians is not None:
        for name, leaf in leaves.items():
            moments = {kind: getattr(gaussians, kind)[name] for kind in ("exp_avg", "exp_avg_sq")}
            optimizer.state[leaf] = {"step": torch.tensor(float(steps)), **moments}
    return optimizer


def gaussians_of(leaves: Leaves, optimizer: torch.optim.Optimizer) -> Gaussians:
    """The scene and the optimizer's moments."""
    states = {name: optimizer.state[leaf] for name, leaf in leaves.items()}
    moments = ({name: s[kind] for name, s in states.items()} for kind in ("exp_avg", "exp_avg_sq"))
    return Gaussians(*(leaves[name].detach() for name in PARAMETERS), *moments)


def generate(config: Config, folder: Path) -> dict[str, Any]:
    """Makes the asset of `config` in `folder`. Seconds by part; the rasterizer's name; whether all numbers
    stayed finite, without which the time means nothing."""
    clock, started = Stopwatch(), time.perf_counter()
    with clock("setup"):
        device, _ = choose_device(config.device)
        model = config.distillation
        prior = load_prior(
            find_model(model.model, half=device.type == "cuda"),
            config.prompt,
            config.negative_prompt,
            device,
            PRECISIONS[model.precision],
        )
        gaussians = first_cloud(config.scene, config.seed).to(device)
        rasterizer_name, rasterizer = choose_rasterizer(device)
    with clock("loop"):
        gaussians = optimise(config, prior, gaussians, rasterizer)
        if device.type == "cuda":
            torch.cuda.synchronize()
    with clock("export"):
        folder.mkdir(parents=True, exist_ok=True)
        export(gaussians, folder)
    seconds = dict(clock.seconds) | {"total": time.perf_counter() - started}
    finite = all(bool(getattr(gaussians, name).isfinite().all()) for name in PARAMETERS)
    return {"stage": "done", "rasterizer": rasterizer_name, "finite": finite, "seconds": seconds}


def main(words: Sequence[str]) -> None:
    if "-h" in words or "--help" in words:
        print(__doc__)
        return
    config = validate(to_config(generate_settings(words)))
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(generate(config, config.output or Path(temporary))), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))
