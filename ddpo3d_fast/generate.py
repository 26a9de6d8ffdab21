"""The loop: from a prompt to an asset."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddpo3d_fast.build import Models, Run, build, with_default_reward
from ddpo3d_fast.configure import validate
from ddpo3d_fast.control import Stopwatch, deferred_interrupt, own_stream, torch_threads
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.export import export
from ddpo3d_fast.files import write_each
from ddpo3d_fast.guidance import Gradient, Seen
from ddpo3d_fast.info import choose_device, gpu_models
from ddpo3d_fast.journal import Observer
from ddpo3d_fast.kernels import get_num_threads
from ddpo3d_fast.priors import kind_of
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.settings import Config
from ddpo3d_fast.step import Tensors

CHECKPOINT_EVERY, CHECKPOINT_SECONDS = 50, 30.0  # steps, and at the first step after so many seconds
AfterStep = Callable[[Run], bool]
"""Sees a run after each step; whether it is to end there, as on Ctrl-C"""


@dataclass
class Result:
    """Where the asset is, and where the time went."""

    folder: Path
    files: list[Path]
    seconds: dict[str, float]  # by part


def generate(
    config: Config,
    folder: RunFolder,
    observer: Observer,
    resume: bool = False,
    models: Models | None = None,
    after_step: AfterStep | None = None,
) -> Result:
    """Makes the asset of `config` in `folder`, telling `observer` of every step.

    The same configuration gives the same asset.ply on the same machine, to the byte, resumed or not. What is
    random is drawn on the CPU, so that a GPU sees the same cameras, timesteps and noises. On Ctrl-C what
    there is is exported and checkpointed, and KeyboardInterrupt goes on. A checkpoint on the way that cannot
    be written is a FallbackWarning. `models` are those of the run before, and keep this one's. Raises
    InputError for wrong settings, a device that is not there, a folder that another run is writing to, or
    files that could not be written at the end, once the others are.
    """
    config = with_default_reward(config)
    # Beside a small prior and its own scorer, torch's threads would only hinder those of kernels and engine.
    small = kind_of(config.distillation.model).small and not config.reward.reward
    device, why = choose_device(validate(config).device)
    if config.device == "auto" and device.type == "cpu" and gpu_models():
        warnings.warn(f"running on the {why}", FallbackWarning, stacklevel=2)
    with torch_threads(1 if small else get_num_threads()), own_stream(device), folder.claimed():
        clock, files = Stopwatch(), list[Path]()
        with clock("setup"):
            run = build(config, folder, device, observer, clock, resume, models)
        last = make_steps(run, after_step)
        with clock("export"):
            observer({"stage": "export", "message": f"writing {folder.path}"})
            write_each(lambda: files.extend(export(run.scene.gaussians, folder.path)), lambda: run.save(last))
        if last < config.schedule.steps:
            raise KeyboardInterrupt
        return Result(folder.path, [*files, *folder.files()], dict(clock.seconds) | {"total": clock.total()})


def make_steps(run: Run[Any], after_step: AfterStep | None = None) -> int:
    """Makes the steps that are left, until Ctrl-C, and saves now and then; returns the number of the last."""
    last, saved, following = run.first - 1, time.perf_counter(), run.prepare(run.first)
    with deferred_interrupt() as interrupted:
        while following is not None and not interrupted():
            (step, key, inputs), following = following, None
            before = [(tensor, tensor.clone()) for tensor in run.kept().values()]
            while True:  # once; on a GPU again where the tile lists had too little room
                launched = run.graphs(key, partial(advance, run, *key), inputs)
                following = following or run.prepare(step.number + 1)  # while the device works
                numbers = read(launched)
                with run.clock("update"):
                    verdict = run.scene.settle(step)
                if verdict != "kept":
                    run.graphs.forget()
                if verdict != "again":
                    break
                for tensor, was in before:
                    tensor.copy_(was)
            last = step.number
            run.journal.note(step, numbers, len(run.scene), run.clock.total())
            late = time.perf_counter() - saved >= CHECKPOINT_SECONDS
            if following is not None and not interrupted() and (late or last % CHECKPOINT_EVERY == 0):
                try:
                    with run.clock("export"):
                        run.save(last)
                except InputError as error:
                    warnings.warn(f"{error}; the run goes on", FallbackWarning, stacklevel=2)
                saved = time.perf_counter()
            if after_step is not None and after_step(run):
                break
    return last


def advance(
    run: Run[Any], rendered: int, picture: int, variants: tuple[Hashable, ...], inputs: Tensors
) -> Tensors:
    """One step on the device, and what to report of it. A CUDA graph can hold it: no wait, no copy."""
    with run.clock("render"):
        cameras, backgrounds = run.plan.cameras(inputs), inputs["backgrounds"]
        views = run.scene.render(cameras, rendered, backgrounds)
        moved = run.scene.moved(cameras, rendered, picture, backgrounds)
        seen, gradient = Seen.of(views.rgb, views.alpha, picture, inputs, moved), Gradient()
    with run.clock("residual"):
        for guidance, variant in zip(run.guidances, variants, strict=True):
            gradient += guidance(seen._replace(variant=variant), gradient)
    with run.clock("update"):
        run.scene.update(views, *gradient.on(views.rgb, views.alpha), inputs, gradient.scene, moved)
    return gradient.metrics


def read(metrics: Tensors) -> dict[str, float]:
    """The numbers of tensors [] on one device, with one wait for all that was launched there."""
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))
