"""The loop: from a prompt to an asset."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast.configure import validate
from ddpo3d_fast.control import Stopwatch, deferred_interrupt, own_stream, torch_threads
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.export import export
from ddpo3d_fast.files import write_each
from ddpo3d_fast.graphs import StepGraphs
from ddpo3d_fast.guidance import OBJECTIVES, ScoreDistillation, alpha_penalty, reward_guide
from ddpo3d_fast.guidance.policy import RunningBaseline
from ddpo3d_fast.info import choose_device, gpu_models
from ddpo3d_fast.kernels import get_num_threads
from ddpo3d_fast.priors import PriorSettings, kind_of, load_prior
from ddpo3d_fast.priors.base import Prior
from ddpo3d_fast.rewards import Reward, RewardSettings, is_at_hand, make_reward, parse_rewards
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import (
    Cameras,
    Splats,
)
from ddpo3d_fast.schedule import (
    calls_of,
    cameras_at,
    resize,
    resize_vjp,
    sample_backgrounds,
    sizes_at,
    timestep_at,
    timestep_range,
)
from ddpo3d_fast.settings import Config, adapter
from ddpo3d_fast.sources import recorded

CHECKPOINT_EVERY, CHECKPOINT_SECONDS = 50, 30.0  # steps, and at the first step after so many seconds
LOST_STEPS = 10  # without a finite loss, on end, after which a run is given up
PRECISIONS = {"auto": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Observer = Callable[[dict[str, Any]], None]


@dataclass
class Result:
    """Where the asset is, and where the time went."""

    folder: Path
    files: list[Path]
    seconds: dict[str, float]  # by part


def with_default_reward(config: Config) -> Config:
    """The configuration with what judges where no reward is named, or where nothing can, without a judge.

    Beside the embedded prior that is the embedded scorer, which needs no naming; beside a Stable Diffusion by
    name `aesthetic`, which may download it. Beside a folder, which never downloads, `aesthetic` where its
    files are at hand; else the weights of policy and guide become 0, and a FallbackWarning says so.
    """
    wishes, model = config.reward, config.distillation.model
    judge = kind_of(model).reward
    if wishes.reward or not (wishes.policy_weight or wishes.guide_weight) or not judge:
        return config
    if not (Path(model).expanduser() / "model_index.json").is_file() or is_at_hand(judge):
        return dataclasses.replace(config, reward=dataclasses.replace(wishes, reward=(judge,)))
    warnings.warn(
        f"--reward: none was named, and {judge}'s files are not on this machine: {model} runs without one, "
        f"by distillation alone (--reward {judge} may download them, docs/rewards.md has others)",
        FallbackWarning,
        stacklevel=2,
    )
    unjudged = dataclasses.replace(wishes, policy_weight=0.0, guide_weight=0.0)
    return dataclasses.replace(config, reward=unjudged)


def predictions(config: Config) -> int:
    """How many an item needs: for the prompt and for nothing or the negative prompt, or for all three."""
    return 1 + len(OBJECTIVES[config.distillation.residual].against)


def load_models(config: Config, device: torch.device) -> tuple[Prior, Reward | None]:
    """The prior of a run and, where it uses one, its reward, all engines made: to build one takes long, which
    is no step's business. Takes what `with_default_reward` gives. Raises InputError."""
    model, wishes, schedule = config.distillation, config.reward, config.schedule
    dtype, judged = PRECISIONS[model.precision], wishes.policy_weight or wishes.guide_weight
    rewards = (wishes.reward or ("embedded",)) if judged else ()
    if rewards:
        parse_rewards(rewards)  # what is wrong with a name is told before a long load
    prior = load_prior(
        PriorSettings(
            model.model,
            device,
            dtype,
            model.runtime,
            codec=model.codec,
            lora=[adapter(text) for text in model.lora],
            interpolate_views=model.interpolate_views,
            calls=calls_of(schedule, predictions(config)),
            prompts=(config.prompt, config.negative_prompt),
        )
    )
    prior.codec.prepare(decodes=wishes.policy_weight > 0)
    if not rewards:
        return prior, None
    scored = schedule.views * (schedule.noises if wishes.reward_of == "action" else 1)
    asked = RewardSettings(device, model.runtime, dtype, batches=(scored, schedule.views))
    reward = make_reward(rewards, asked)
    reward.prepare(gradient=reward.differentiable and wishes.guide_weight > 0)
    return prior, reward


class Step(NamedTuple):
    """What a step draws, all on the CPU."""

    generator: torch.Generator  # of the step alone: there is no state to carry
    inputs: dict[str, Tensor]  # what `advance` reads
    rendered: int  # pixels of a view's side
    seen: int  # of the picture that the prior sees of it
    acting: bool  # whether the policy acts
    timestep: int  # the mean of the views'


def read(metrics: dict[str, Tensor]) -> dict[str, float]:
    """The numbers of tensors [] on one device, with one wait for all that was launched there."""
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


def generate(config: Config, folder: RunFolder, observer: Observer, resume: bool = False) -> Result:
    """Makes the asset of `config` in `folder`, telling `observer` of every step.

    The same configuration gives the same asset.ply on the same machine, to the byte, resumed or not. What is
    random is drawn on the CPU, so that a GPU sees the same cameras, timesteps and noises. On Ctrl-C what
    there is is exported and checkpointed, and KeyboardInterrupt goes on. A checkpoint on the way that cannot
    be written is a FallbackWarning. Raises InputError for wrong settings, a device that is not there, a
    folder that another run is writing to, or files that could not be written at the end, once the others are.
    """
    config = with_default_reward(config)
    # Beside the embedded models, what torch does in a step is small: its threads would only hinder those of
    # kernels and engine. Other models may be torch's to run.
    small = kind_of(config.distillation.model).small and not config.reward.reward
    device, why = choose_device(validate(config).device)
    if config.device == "auto" and device.type == "cpu" and gpu_models():
        warnings.warn(f"running on the {why}", FallbackWarning, stacklevel=2)
    with torch_threads(1 if small else get_num_threads()), own_stream(device), folder.claimed():
        return _generate(config, folder, observer, resume)


def _generate(config: Config, folder: RunFolder, observer: Observer, resume: bool) -> Result:
    clock, started = Stopwatch(), time.perf_counter()
    schedule, scene, wishes = validate(config).schedule, config.scene, config.reward
    with clock("setup"):
        device, _ = choose_device(config.device)
        state = folder.load_checkpoint(schedule.steps) if resume else None
        place = "the GPU" if device.type == "cuda" else "the CPU"
        observer({"stage": "load", "message": f"loading {config.distillation.model} on {place}"})
        with recorded() as files_read:
            prior, scorer = load_models(config, device)
            prompt = prior.prompt(config.prompt, config.negative_prompt, predictions(config) == 3)
        folder.identify(files_read)
        lowest, highest = timestep_range(schedule, prior)
        steps = range(1, schedule.steps + 1)
        sizes = {n: sizes_at(schedule, prior.picture_size, (n - 1) / schedule.steps) for n in steps}
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
        splats, first, rows = Splats(scene, config.seed, device), 1, []
        if state is not None:
            first, rows = state["step"] + 1, folder.read_metrics(until=state["step"])
            with folder.restoring():
                splats.load(state)
                distill.baseline = RunningBaseline(state["rewards"], device)
        capturable = scorer is None or scorer.capturable
        graphs = StepGraphs(device, device.type == "cuda" and config.cuda_graph and capturable)
        facts = {"engine": prior.runtime, "reward": "none"}
        facts |= {f"{name}_engine": runtime for name, runtime in prior.codec.runtimes.items()}
        if scorer is not None:
            facts |= {"reward": scorer.name, "reward_engine": scorer.runtime}
        folder.begin(config, facts, resume)

    def checkpoint(step: int) -> None:
        saved = {"step": step, "rewards": distill.baseline.window.tolist()} | splats.state()
        write_each(lambda: folder.write_metrics(rows), lambda: folder.save_checkpoint(saved))

    def advance(rendered: int, seen: int, acting: bool, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step on the device, and what to report of it. A CUDA graph can hold it: no wait, no copy."""
        with clock("render"):
            angles = inputs["azimuth"], inputs["elevation"]
            cameras = Cameras(inputs["viewmats"], *angles, math.radians(schedule.fov))
            views = splats.render(cameras, rendered, inputs["backgrounds"])
            # Without room the views are NaN, which a user's reward may refuse.
            pictures = resize(views.rgb, seen).nan_to_num()
        with clock("residual"):
            guided = distill(pictures, inputs, acting)
            gradient, metrics = guided.grad_pictures, guided.metrics
        if scorer is not None and guided_by_reward:
            with clock("reward"):
                guide, metrics["guide"] = reward_guide(
                    pictures, config.prompt, scorer, wishes.guide_weight, gradient
                )
                gradient = gradient + guide
        with clock("update"):
            splats.update(
                views,
                resize_vjp(gradient, rendered) / schedule.views,
                alpha_penalty(views.alpha, inputs["haziness"]),
                inputs,
            )
        return metrics | {"alpha": views.alpha.mean()}

    def prepare(number: int) -> Step:
        """What step `number` draws, which depends on nothing that an earlier one has done."""
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        fraction = (number - 1) / schedule.steps
        cameras = cameras_at(generator, schedule)
        backgrounds = sample_backgrounds(generator, schedule.views, schedule.backgrounds)
        seen_from = torch.stack([cameras.azimuth, cameras.elevation, backgrounds[:, 0]], 1)
        jitter = schedule.timestep_jitter * (2 * torch.rand(schedule.views, generator=generator) - 1)
        timesteps = timestep_at(fraction, len(prior.alphas_cumprod), lowest, highest, jitter)
        rendered, seen = sizes[number]
        haziness = scene.alpha_penalty * fraction * (seen / rendered) ** 2 / schedule.views
        inputs, acting = distill.inputs(seen_from, timesteps, number)
        inputs |= {
            "viewmats": cameras.viewmats,
            "azimuth": cameras.azimuth,
            "elevation": cameras.elevation,
            "backgrounds": backgrounds,
            "haziness": torch.tensor(haziness),
        } | splats.inputs(number, fraction)
        return Step(generator, inputs, rendered, seen, acting, int(timesteps.float().mean()))

    step, lost, last_checkpoint = first - 1, 0, time.perf_counter()
    following = prepare(first) if first <= schedule.steps else None
    with deferred_interrupt() as interrupted:
        for step in range(first, schedule.steps + 1):
            now, following = following, None
            assert now is not None
            key = (now.rendered, now.seen, now.acting)
            rewards_before, done = distill.baseline.window.clone(), False

            while not done:  # once; on a GPU again where the tile lists had too little room
                launched = graphs(key, partial(advance, *key), now.inputs)
                if following is None and step < schedule.steps:
                    following = prepare(step + 1)  # while the device works
                numbers = read(launched)
                done = splats.fits()
                if not done:
                    distill.baseline.window.copy_(rewards_before)
                if splats.grow():
                    graphs.forget()

            with clock("update"):
                if splats.settle(step, (step - 1) / schedule.steps, now.generator):
                    graphs.forget()

            progress = {"step": step, "steps": schedule.steps, "timestep": now.timestep}
            rows.append(progress | numbers | {"gaussians": len(splats.gaussians)})
            lost = 0 if math.isfinite(numbers["loss"]) else lost + 1
            if lost == LOST_STEPS:
                raise InputError(
                    f"--model: {config.distillation.model} has given no number in {lost} steps on end, the "
                    f"last of them step {step}: its weights are damaged, or too much for {prior.runtime}"
                )
            observer(rows[-1] | {"stage": "distill", "seconds": time.perf_counter() - started})
            if interrupted():
                break
            late = time.perf_counter() - last_checkpoint >= CHECKPOINT_SECONDS
            if step < schedule.steps and (late or step % CHECKPOINT_EVERY == 0):
                with clock("export"):
                    try:
                        checkpoint(step)
                    except InputError as error:
                        warnings.warn(f"{error}; the run goes on", FallbackWarning, stacklevel=2)
                last_checkpoint = time.perf_counter()
    with clock("export"):
        observer({"stage": "export", "message": f"writing {folder.path}"})
        files: list[Path] = []
        write_each(lambda: files.extend(export(splats.gaussians, folder.path)), lambda: checkpoint(step))
    if step < schedule.steps:
        raise KeyboardInterrupt
    seconds = dict(clock.seconds) | {"total": time.perf_counter() - started}
    return Result(folder.path, [*files, *folder.files()], seconds)
