"""The loop: from a prompt to an asset."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpo3d_fast.assets import contact_sheet, write_ply, write_png, write_turntable
from ddpo3d_fast.config import Config, validate
from ddpo3d_fast.control import Stopwatch, deferred_interrupt, one_torch_thread
from ddpo3d_fast.guidance import ScoreDistillation, alpha_penalty, reward_guide
from ddpo3d_fast.info import choose_device
from ddpo3d_fast.kernels import TileCapacity
from ddpo3d_fast.priors import load_prior
from ddpo3d_fast.rewards import make_reward
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import (
    Gaussians,
    LearningRates,
    initial_cloud,
    orbit,
    outside_hull,
    prune,
    relocate,
    sample_cameras,
)

CHECKPOINT_EVERY = 50  # steps
TURNTABLE_FRAMES, TURNTABLE_SIZE = 72, 384
FIRST_CAPACITY = 1 << 18  # pairs of a tile and a Gaussian to make room for on a GPU, 8 MiB; grows as needed
EXPORT_OPACITY = 0.02  # fainter Gaussians are left out of the asset

Observer = Callable[[dict[str, Any]], None]


@dataclass
class Result:
    """Where the asset is, and where the time went."""

    folder: Path
    files: list[Path]
    seconds: dict[str, float]  # by part


def timestep_at(fraction: float, count: int, low: float, high: float, jitter: Tensor) -> Tensor:
    """[V] int64 timesteps: annealed linearly from `high` to `low` (fractions of `count`), plus jitter [V]."""
    level = high + (low - high) * fraction + jitter
    return (level.clamp(low, high) * (count - 1)).long()


def learning_rates(config: Config, fraction: float) -> LearningRates:
    """Exponential decay of all rates to `final_rate` of them."""
    scene = config.scene
    decay = max(scene.final_rate, 1e-8) ** fraction
    return LearningRates(
        means=scene.means_rate * decay,
        quats=scene.quats_rate * decay,
        log_scales=scene.scales_rate * decay,
        logit_opacities=scene.opacities_rate * decay,
        sh=scene.colors_rate * decay,
    )


def sample_backgrounds(generator: torch.Generator, views: int) -> Tensor:
    """[V, 3]: half white, half a random grey, as the prior's training pictures."""
    white, grey = torch.rand(2, views, generator=generator)
    return torch.where(white < 0.5, torch.ones(views), grey)[:, None].repeat(1, 3)


def read(metrics: dict[str, Tensor]) -> dict[str, float]:
    """The numbers of tensors [] on one device, with one wait for all that was launched there."""
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


def shrink(images: Tensor, factor: int) -> Tensor:
    """[V, H f, W f, 3] rendered images to pictures [V, 3, H, W], averaging areas."""
    return torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2), factor)


def shrink_vjp(grad: Tensor, factor: int) -> Tensor:
    """Gradient with respect to the images from that with respect to the pictures of `shrink`."""
    spread = grad.repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2
    return spread.permute(0, 2, 3, 1).contiguous()


@one_torch_thread()
def generate(config: Config, folder: RunFolder, observer: Observer, resume: bool = False) -> Result:
    """Makes the asset of `config` in `folder`, telling `observer` of every step.

    The same configuration gives the same asset.ply on the same machine, to the byte, resumed or not. What is
    random is drawn on the CPU, so that a GPU sees the same cameras, timesteps and noises. On Ctrl-C what
    there is is exported and checkpointed, and KeyboardInterrupt goes on. Raises InputError for wrong
    settings, or a device that is not there.
    """
    clock, started = Stopwatch(), time.perf_counter()
    schedule, scene, wishes = validate(config).schedule, config.scene, config.reward
    with clock("setup"):
        device, _ = choose_device(config.device)
        place = "the GPU" if device.type == "cuda" else "the CPU"
        observer({"stage": "load", "message": f"loading {config.distillation.model} on {place}"})
        prior = load_prior(config.distillation.model, device)
        prompt = prior.prompt(config.prompt, config.negative_prompt)
        wanted = wishes.policy_weight > 0 or wishes.guide_weight > 0
        scorer = make_reward(list(wishes.reward) or ["embedded"], device) if wanted else None
        guided_by_reward = scorer is not None and scorer.differentiable and wishes.guide_weight > 0
        distill = ScoreDistillation(
            prior,
            prompt,
            config.prompt,
            config.distillation,
            wishes,
            scorer,
            config.seed,
            schedule.noises,
            clock,
        )
        gaussians, first, rows = initial_cloud(scene.gaussians, config.seed), 1, []
        if resume:
            state = folder.load_checkpoint()
            gaussians.load_state_dict(state["gaussians"])
            distill.baseline.window = torch.tensor(state["rewards"])
            first, rows = state["step"] + 1, folder.read_metrics()[: state["step"]]
        gaussians, capacity = gaussians.to(device), TileCapacity(FIRST_CAPACITY)
        folder.write_config(config, {"engine": prior.runtime, "reward": scorer.name if scorer else "none"})

    def checkpoint(step: int) -> None:
        folder.write_metrics(rows)
        state, rewards = gaussians.to("cpu").state_dict(), distill.baseline.window.tolist()
        folder.save_checkpoint({"step": step, "gaussians": state, "rewards": rewards})

    step = first - 1
    with deferred_interrupt() as interrupted:
        for step in range(first, schedule.steps + 1):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)  # no state to carry
            fraction = (step - 1) / schedule.steps
            cameras = sample_cameras(generator, schedule.views)
            backgrounds = sample_backgrounds(generator, schedule.views)
            seen_from = torch.stack([cameras.azimuth, cameras.elevation, backgrounds[:, 0]], 1)
            jitter = schedule.timestep_jitter * (2 * torch.rand(schedule.views, generator=generator) - 1)
            timesteps = timestep_at(
                fraction, len(prior.alphas_cumprod), schedule.min_timestep, schedule.max_timestep, jitter
            )
            factor = schedule.resolution_factors[int(fraction * len(schedule.resolution_factors))]
            size = prior.picture_size * factor
            window, done = distill.baseline.window, False

            while not done:  # once; on a GPU again where the tile lists had too little room
                distill.baseline.window = window
                with clock("render"):
                    views = gaussians.render(cameras, size, size, backgrounds, capacity=capacity)
                    # Without room the views are NaN, which a user's reward may refuse.
                    pictures = shrink(views.rgb, factor).nan_to_num()
                with clock("residual"):
                    guided = distill(pictures, seen_from, timesteps, step)
                    gradient, metrics = guided.grad_pictures, guided.metrics
                if scorer is not None and guided_by_reward:
                    with clock("reward"):
                        guide, metrics["guide"] = reward_guide(
                            pictures, config.prompt, scorer, wishes.guide_weight, gradient
                        )
                        gradient = gradient + guide
                with clock("update"):
                    haziness = scene.alpha_penalty * fraction / (factor**2 * schedule.views)
                    gaussians.update(
                        views,
                        shrink_vjp(gradient, factor) / schedule.views,
                        alpha_penalty(views.alpha, haziness),
                        learning_rates(config, fraction),
                        step,
                        opacity_penalty=scene.opacity_penalty,
                    )
                    numbers = read(metrics | {"alpha": views.alpha.mean()})
                    done = not capacity.overflowed  # where it has, nothing was updated
                    capacity.grow()

            with clock("update"):
                if scene.relocate_every and step % scene.relocate_every == 0 and fraction < 0.8:
                    haze = outside_hull(gaussians) if fraction > scene.carve_from else None
                    relocate(gaussians, generator, scene.dead_opacity, also_dead=haze)

            progress = {"step": step, "steps": schedule.steps, "timestep": int(timesteps.float().mean())}
            rows.append(progress | numbers)
            observer(rows[-1] | {"stage": "distill", "seconds": time.perf_counter() - started})
            if interrupted():
                break
            if step % CHECKPOINT_EVERY == 0 and step < schedule.steps:
                with clock("export"):
                    checkpoint(step)
    with clock("export"):
        observer({"stage": "export", "message": f"writing {folder.path}"})
        checkpoint(step)
        files = export(gaussians, folder.path)
    if step < schedule.steps:
        raise KeyboardInterrupt
    seconds = dict(clock.seconds) | {"total": time.perf_counter() - started}
    return Result(folder.path, [*files, *folder.files()], seconds)


def export(gaussians: Gaussians, folder: Path) -> list[Path]:
    """Writes asset.ply, turntable.mp4 and preview.png, made on the CPU, and returns their paths."""
    asset = prune(gaussians.to("cpu"), EXPORT_OPACITY)
    if len(solid := asset[~outside_hull(asset)]):
        asset = solid
    ply, video, preview = (folder / name for name in ("asset.ply", "turntable.mp4", "preview.png"))
    write_ply(ply, asset.means, asset.quats, asset.log_scales, asset.logit_opacities, asset.sh)
    write_turntable(video, turntable_frames(asset, TURNTABLE_FRAMES, TURNTABLE_SIZE))
    cameras = orbit(8, elevation=math.radians(15))
    views = asset.render(cameras, 256, 256, torch.ones(8, 3), antialiased=False).rgb
    write_png(preview, contact_sheet(views, columns=4))
    return [ply, video, preview]


def turntable_frames(asset: Gaussians, count: int, size: int) -> Iterator[Tensor]:
    """`count` white-backed frames [size, size, 3] of one turn, rendered a few at a time."""
    cameras = orbit(count)
    for start in range(0, count, 8):
        chunk = cameras[start : start + 8]
        yield from asset.render(chunk, size, size, torch.ones(len(chunk), 3)).rgb
