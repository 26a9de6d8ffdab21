"""Which way does a policy pull? Estimates of the policy gradient beside the true gradient of their reward.

    python benchmarks/estimator.py [--prompt "a mushroom"] [--repeats 6] [--rewards embedded bluer]
        [--vary actions timestep ...] [--json FILE] [--plot FILE.svg]
    python benchmarks/estimator.py --read FILE [--plot FILE.svg]

A run of plain distillation is frozen early, midway and late. On each of its scenes every policy estimates,
from scores alone, what a reward wants of a step's views; the reward has a gradient, so the truth is known.
What the policy adds to distillation's gradient is held against it:

    picture    cosine to the reward's gradient on the rendered views. Of the scene policy, of the change that
               its pull makes in them
    scene      cosine of both behind the rasterizer's backward pass, with respect to the Gaussians' numbers in
               the units of the scene policy; of a policy that moves colours alone it cannot reach 1
    seconds    of the processor's work for one estimate, beyond a step of distillation with one noise a view

Both cosines are means over estimates of other noises and cameras, beside their standard error. An estimate's
own signal, which scales its pull in a run, is set to 1. One thing is varied at a time, the others being

    actions 32     pictures that the reward scores, for each view
    timestep 0.4   of noise and latent, as a fraction of the prior's
    views 2
    sigma 0.1      of view
    rank 2         points a side of the grid of view and latent; of scene, half the waves of a band

Ctrl-C ends with the table of what there is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from estimator_plot import svg
from torch import Tensor

from ddpo3d_fast import __version__
from ddpo3d_fast.build import build
from ddpo3d_fast.configure import preset
from ddpo3d_fast.control import Stopwatch
from ddpo3d_fast.files import write_text
from ddpo3d_fast.generate import advance, read
from ddpo3d_fast.guidance import (
    Gradient,
    Guidance,
    ScenePolicy,
    ScoreDistillation,
    Seen,
    ViewPolicy,
    scaling,
    scene_policy,
)
from ddpo3d_fast.info import machine
from ddpo3d_fast.kernels import rasterize_backward
from ddpo3d_fast.priors.base import Prior
from ddpo3d_fast.resampling import resize_vjp
from ddpo3d_fast.rewards import Reward, make_reward
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import Gaussians, moved_channels
from ddpo3d_fast.scene.gaussians import PARAMETERS, Views
from ddpo3d_fast.scene.moved import Moved
from ddpo3d_fast.scene.units import in_units
from ddpo3d_fast.schedule import Plan
from ddpo3d_fast.settings import Config
from ddpo3d_fast.step import Step, Tensors, merged
from ddpo3d_fast.vectors import length_across

STAGES = {"early": 0.2, "midway": 0.5, "late": 0.9}  # of the run
ESTIMATORS: dict[str, dict[str, Any]] = {
    "noise": {"policy": "noise"},
    "latent white": {"policy": "latent", "policy_exploration": "white"},
    "latent lowpass": {"policy": "latent", "policy_exploration": "lowpass"},
    "view": {"policy": "view"},
    "scene": {"policy": "scene"},
    "scene all": {"policy": "scene", "policy_moves": "all"},
}
NETWORK = ("noise", "latent white", "latent lowpass")  # whose estimates cost its evaluations
BASE = {"actions": 32, "timestep": 0.4, "views": 2, "sigma": 0.1, "rank": 2}
SCORES = tuple(name for name in ESTIMATORS if name not in NETWORK)  # that cost scores alone
VARIED: dict[str, list[tuple[tuple[float, ...], tuple[str, ...]]]] = {  # values, and whom it concerns
    "actions": [((8, 32), NETWORK), ((8, 32, 128), SCORES)],
    "timestep": [((0.1, 0.4, 0.7), NETWORK)],
    "views": [((1, 2), NETWORK), ((1, 2, 8), SCORES)],
    "sigma": [((0.03, 0.1, 0.3), ("view",))],
    "rank": [((1, 2, 4, 8), ("latent lowpass", "view", "scene"))],
}
STEP = 1e-2  # of the scene's units, to see what a pull at it changes in its views

Row = dict[str, Any]


class Bluer:
    """mean(blue - red), and its gradient."""

    name, differentiable, capturable, runtime = "bluer", True, True, "torch"

    def prepare(self, gradient: bool) -> None:
        """Nothing to make."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return (images[:, 2] - images[:, 0]).mean((1, 2))

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        gradient = torch.zeros_like(images)
        gradient[:, 0], gradient[:, 2] = -1, 1
        return self.score(images, prompts), gradient / images[0, 0].numel()


@dataclass
class Frozen:
    """A scene on its way, and all that looks at it."""

    gaussians: Gaussians
    number: int  # of the step that would be next
    plan: Plan
    prior: Prior
    prompt: Any  # what the prior has understood
    config: Config


@dataclass
class Looked:
    """A step's views of a frozen scene."""

    scene: Frozen
    step: Step
    inputs: Tensors
    views: Views
    moved: Moved
    seen: Seen


def frozen(config: Config, stages: dict[str, float]) -> dict[str, Frozen]:
    """A run's scene at these parts of it, before the rest goes on."""
    found: dict[str, Frozen] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder.create(replace(config, output=Path(place) / "run"))
        with folder.claimed():
            run = build(folder.config, folder, torch.device("cpu"), lambda row: None, Stopwatch(), False)
            distillation = run.guidances[0]
            assert isinstance(distillation, ScoreDistillation)
            for number in range(1, config.schedule.steps + 1):
                for stage, part in stages.items():
                    if number == round(part * config.schedule.steps):
                        found[stage] = Frozen(
                            run.scene.gaussians[:],
                            number,
                            run.plan,
                            distillation.prior,
                            distillation.prompt,
                            config,
                        )
                prepared = run.prepare(number)
                assert prepared is not None
                read(advance(run, *prepared.key, prepared.inputs))
                run.scene.settle(prepared.step)
    return found


def look(scene: Frozen, views: int, timestep: float, draw: int) -> Looked:
    """A step of so many views at one timestep; each `draw` has cameras and noises of its own."""
    schedule = replace(scene.plan.schedule, views=views)
    step = replace(scene.plan, schedule=schedule).draw(scene.number)
    other = replace(scene.plan, schedule=schedule, seed=1000 + draw).draw(scene.number)
    at = torch.full((views,), int(timestep * (len(scene.prior.alphas_cumprod) - 1)))
    step = other._replace(number=1 + draw, rendered=step.rendered, picture=step.picture, timesteps=at)
    inputs = step.inputs()
    cameras = scene.plan.cameras(inputs)
    seen = scene.gaussians.render(cameras, step.rendered, step.rendered, step.backgrounds)
    moved = Moved(
        scene.gaussians, cameras, step.backgrounds, min(step.rendered, step.picture), step.picture, []
    )
    return Looked(
        scene, step, inputs, seen, moved, Seen.of(seen.rgb, seen.alpha, step.picture, inputs, moved)
    )


def through(looked: Looked, pictures: Tensor) -> Tensor:
    """[R, C] gradient of the scene's numbers, in units, of one [V, 3, S, S] of its pictures."""
    grads = rasterize_backward(
        looked.views.state, resize_vjp(pictures, looked.step.rendered) / len(pictures), None, of_cameras=False
    )
    every = (grads.means, grads.quats, grads.scales, grads.opacities, grads.colors)
    return in_units(dict(zip(PARAMETERS, every, strict=True)))


def called(guidance: Guidance, looked: Looked, so_far: Gradient) -> tuple[Gradient, float]:
    """What a guidance gives, and its seconds of the processor's work."""
    inputs = merged(looked.inputs, guidance.inputs(looked.step))
    seen = looked.seen._replace(inputs=inputs, variant=guidance.variant(looked.step))
    started = time.process_time()
    return guidance(seen, so_far), time.process_time() - started


@contextmanager
def all_signal(waves: int) -> Iterator[None]:
    """Estimates pull with all of themselves, the scene policy along so many waves a band."""
    count = len(scene_policy.BANDS)
    band_of = (0, *2 * [band for band in range(count) for _ in range(waves)])

    def ones(square: Tensor, *_: Any) -> Tensor:
        return torch.ones_like(square)

    with (
        mock.patch.object(scaling, "beyond_chance", ones),
        mock.patch.object(scene_policy, "beyond_chance", ones),
        mock.patch.multiple(scene_policy, WAVES=waves, FIELDS=1 + 2 * waves * count, BAND_OF=band_of),
    ):
        yield


def estimated(
    looked: Looked, reward: Reward, wishes: dict[str, Any], case: dict[str, Any], draw: int
) -> tuple[Tensor, Tensor, float]:
    """An estimate of the ascent in picture space [V, 3, S, S] and in the scene's [R, C], and its seconds."""
    config, views = looked.scene.config, int(case["views"])
    actions, rank = int(case["actions"]), int(case["rank"])
    settings = replace(
        config.reward,
        **wishes,
        policy_weight=1.0,
        policy_max_timestep=1.0,
        policy_pairs=actions * views // 2,
        policy_sigma=case["sigma"],
        policy_grid=rank,
    )
    mine = replace(
        config, reward=settings, seed=draw, schedule=replace(config.schedule, noises=actions, views=views)
    )
    prior, prompt = looked.scene.prior, looked.scene.prompt
    alone = replace(
        mine, reward=replace(settings, policy_weight=0.0), schedule=replace(mine.schedule, noises=1)
    )
    # The noise policy adds to the mean residual of all its noises, the latent policy to that of one.
    many = replace(alone, schedule=mine.schedule) if settings.policy == "noise" else alone
    with all_signal(2 * rank):
        plain, seconds = called(ScoreDistillation(prior, prompt, None, alone), looked, Gradient())
        if settings.policy in ("noise", "latent"):
            base, _ = called(ScoreDistillation(prior, prompt, None, many), looked, Gradient())
            both, took = called(ScoreDistillation(prior, prompt, reward, mine), looked, Gradient())
            assert both.pictures is not None
            assert base.pictures is not None
            pictures = base.pictures - both.pictures
            return pictures, through(looked, pictures), took - seconds
        if settings.policy == "view":
            pull, took = called(ViewPolicy(reward, mine), looked, plain)
            assert pull.pictures is not None
            return -pull.pictures, through(looked, -pull.pictures), took
        policy = ScenePolicy(reward, mine, moved_channels(settings.policy_moves))
        pull, took = called(policy, looked, plain)
    assert pull.scene is not None
    assert plain.pictures is not None
    ascent = -pull.scene * length_across(through(looked, plain.pictures), pull.scene)[:, None]
    move = STEP * ascent / ascent.square().mean().sqrt()
    fixed = range(views)
    there, back = (torch.cat([looked.moved.picture_of(sign * move, v) for v in fixed]) for sign in (1, -1))
    return there - back, ascent, took


def cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm() + 1e-30))


def measured(scene: Frozen, reward: Reward, estimator: str, case: dict[str, Any], repeats: int) -> Row:
    """A row of the table."""
    found: dict[str, list[float]] = {"picture": [], "scene": [], "seconds": []}
    for draw in range(repeats):
        looked = look(scene, int(case["views"]), case["timestep"], draw)
        _, truth = reward.score_vjp(looked.seen.pictures, [scene.config.prompt] * int(case["views"]))
        pictures, ascent, seconds = estimated(looked, reward, ESTIMATORS[estimator], case, draw)
        found["picture"].append(cosine(pictures, truth))
        found["scene"].append(cosine(ascent, through(looked, truth)))
        found["seconds"].append(seconds)
    error = repeats**0.5
    return {
        "picture": statistics.fmean(found["picture"]),
        "picture error": statistics.stdev(found["picture"]) / error,
        "scene": statistics.fmean(found["scene"]),
        "scene error": statistics.stdev(found["scene"]) / error,
        "seconds": statistics.median(found["seconds"]),
    }


def cases(varied: list[str]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """What is varied, the stage, the estimator, and all values. Actions alone are varied at every stage."""
    for name in varied:
        for stage in STAGES if name == "actions" else ("midway",):
            for values, whom in VARIED[name]:
                for estimator in whom:
                    for value in values:
                        if name == "actions" or value != BASE[name]:
                            yield name, stage, estimator, BASE | {name: value}


def table(rows: list[Row]) -> str:
    """Of each estimator and case a line, its rewards side by side: cosines in scene and picture."""
    rewards = list(dict.fromkeys(row["reward"] for row in rows))
    lines = [
        f"{'':16}{'stage':8}{'varied':14}"
        + "".join(f"{name + ', scene':>20}{'picture':>16}" for name in rewards)
        + f"{'seconds':>9}"
    ]
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = row["estimator"], row["stage"], row["varied"], row[row["varied"]]
        cases.setdefault(key, {})[row["reward"]] = row
    for (estimator, stage, varied, value), found in cases.items():
        line = f"{estimator:16}{stage:8}{f'{varied} {value:g}':14}"
        for name in rewards:
            for space, width in (("scene", 20), ("picture", 16)):
                row = found.get(name)
                said = f"{row[space]:+.3f} ± {row[space + ' error']:.3f}" if row else ""
                line += f"{said:>{width}}"
        seconds = [row["seconds"] for row in found.values() if "seconds" in row]  # not of every case kept
        lines.append(line + (f"{statistics.fmean(seconds):9.3f}" if seconds else ""))
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rewards: dict[str, Any] = {"embedded": lambda: make_reward(("embedded",)), "bluer": Bluer}
    parser.add_argument("--prompt", default="a mushroom", help='default: "a mushroom"')
    parser.add_argument("--preset", default="draft", help="of the run that is frozen; default: draft")
    parser.add_argument("--repeats", type=int, default=6, help="estimates of a case, at least 2; default: 6")
    parser.add_argument("--rewards", nargs="+", choices=rewards, default=list(rewards))
    parser.add_argument("--vary", nargs="+", choices=VARIED, default=list(VARIED))
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--json", type=Path, help="also write the figures here, after every case")
    parser.add_argument("--read", type=Path, help="figures written by --json, to show again")
    parser.add_argument("--plot", type=Path, help="cosine against seconds, of what varies actions; svg")
    options = parser.parse_args(words)
    rows: list[Row] = json.loads(options.read.read_text())["rows"] if options.read else []
    config = preset(options.preset, options.prompt)
    config = replace(config, reward=replace(config.reward, policy_weight=0.0, guide_weight=0.0), device="cpu")
    facts = {"machine": machine(), "version": __version__, "prompt": options.prompt, "preset": options.preset}
    try:
        if not options.read:
            print(machine(), flush=True)
            scenes = frozen(config, STAGES)
            made = {name: rewards[name]() for name in options.rewards}
            for varied, stage, estimator, case in cases(options.vary):
                if estimator not in options.estimators:
                    continue
                for name, reward in made.items():
                    row = {"varied": varied, "stage": stage, "reward": name, "estimator": estimator, **case}
                    row |= measured(scenes[stage], reward, estimator, case, options.repeats)
                    rows.append(row)
                    print(f"{estimator}, {stage}, {varied} {case[varied]:g}", file=sys.stderr, flush=True)
                if options.json:
                    write_text(options.json, json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    except KeyboardInterrupt:
        return 130
    finally:
        if rows:
            print(table(rows), flush=True)
        if options.plot and any(row["varied"] == "actions" for row in rows):
            write_text(options.plot, svg(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
