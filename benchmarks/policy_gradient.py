"""Does the policy gradient make better assets? Every arm at equal prompts, seeds and UNet evaluations.

    python benchmarks/policy_gradient.py [--preset draft] [--prompts 12] [--seeds 0 1]
        [--arms sds+policy sds+shuffled ...] [--json FILE] [-- flags of generate]

    sds            score distillation alone; always made, the other arms are compared with it
    sds+guide      and the reward's own gradient on the views
    sds+policy     and the noise policy
    sds+latent     and the latent policy
    sds+render     and the latent policy, rewarded by the rendered view: the paper's figure, literally
    sds+shuffled   and the noise policy with each view's advantages in a random order: the control
    all            the settings as they are, by default the noise policy and the guide

An arm changes only what its name says; the flags after -- are for all. The latent policy evaluates the UNet
once more a view, so its arms take fewer steps. Each asset is judged from quality.py's held-out views:

    reward         by the scorer that the run followed
    other reward   by the evaluation scorer, which no run follows
    class, colour  mean log-probability of the prompt's, by the judge that was trained on true renders
    IoU            of the silhouettes with those of the true object

The intervals are percentile bootstraps of the paired difference to `sds`. What is drawn anew is prompts, the
seeds of each averaged first, for these are no further evidence about other prompts. Fewer than six have none.
Ctrl-C ends with the table of what there is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import paired
import torch
from paired import Row
from quality import JUDGES, PROMPTS, VIEWS, held_out_views, silhouette_iou, true_coverage
from torch import Tensor

from ddpo3d_fast import __version__
from ddpo3d_fast.arguments import generate_settings, to_config
from ddpo3d_fast.assets import read_ply
from ddpo3d_fast.configure import validate
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import write_text
from ddpo3d_fast.generate import generate
from ddpo3d_fast.info import machine
from ddpo3d_fast.priors.embedded import EmbeddedPrior
from ddpo3d_fast.rewards import Reward, make_reward
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import Gaussians
from ddpo3d_fast.settings import Config
from ddpo3d_fast.training.classifier import load_classifier
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES
from ddpo3d_fast.training.scorer import load_evaluation_scorer

BASE = "sds"
# What an arm changes in the reward's settings.
ARMS: dict[str, dict[str, Any]] = {
    BASE: {"policy_weight": 0.0, "guide_weight": 0.0},
    "sds+guide": {"policy_weight": 0.0},
    "sds+policy": {"policy": "noise", "guide_weight": 0.0},
    "sds+latent": {"policy": "latent", "guide_weight": 0.0},
    "sds+render": {"policy": "latent", "reward_of": "render", "baseline": "running", "guide_weight": 0.0},
    "sds+shuffled": {"policy": "noise", "shuffle_advantages": True, "guide_weight": 0.0},
    "all": {},
}
MEASURES = {  # and their decimals in the table
    "reward": 3,
    "other reward": 3,
    "class": 3,
    "colour": 3,
    "IoU": 3,
    "steps": 0,
    "evaluations": 0,
    "seconds": 1,
}


def evaluations_per_step(config: Config) -> float:
    """Noisy latents that the UNet sees in a step, averaged over the run and its random jitter.

    Views x noises, and one more a view where the latent policy acts: from its first noisy view it goes on to
    its actions. It acts as soon as the timestep of any view is low enough.
    """
    schedule, reward = config.schedule, config.reward
    plain = schedule.views * schedule.noises
    if reward.policy != "latent" or not reward.policy_weight:
        return plain
    fraction = torch.arange(schedule.steps) / schedule.steps
    level = schedule.max_timestep + (schedule.min_timestep - schedule.max_timestep) * fraction
    jitter = max(schedule.timestep_jitter, 1e-6)
    low_enough = (0.5 + (reward.policy_max_timestep - level) / (2 * jitter)).clamp(0, 1)  # of one view
    acts = 1 - (1 - low_enough) ** schedule.views
    return plain + schedule.views * float(acts.mean())


def arm_config(config: Config, arm: str) -> Config:
    """The settings of an arm, with as many steps as make the UNet evaluations those of `sds`."""
    schedule = replace(config.schedule, noises=config.schedule.actions(True))  # in steps without policy, too
    config = replace(config, schedule=schedule, reward=replace(config.reward, **ARMS[arm]))
    steps = schedule.steps * schedule.views * schedule.noises / evaluations_per_step(config)
    return replace(config, schedule=replace(schedule, steps=max(1, round(steps))))


@contextlib.contextmanager
def counted_evaluations() -> Iterator[list[int]]:
    """Gives a list to which every UNet call of the runs inside adds how many noisy latents it was given."""
    counts: list[int] = []
    predict = EmbeddedPrior.predict

    def counting(prior: EmbeddedPrior, noisy: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        counts.append(len(noisy))
        return predict(prior, noisy, *others)

    with mock.patch.object(EmbeddedPrior, "predict", counting):
        yield counts


def make_asset(config: Config) -> tuple[Gaussians, Row]:
    """The asset of a run, and what it cost."""
    with tempfile.TemporaryDirectory() as place, counted_evaluations() as counts:
        config = replace(config, output=Path(place) / "run")
        folder = RunFolder.create(config)
        result = generate(config, folder, lambda row: None)
        asset = Gaussians(*read_ply(folder.path / "asset.ply"))
    steps = config.schedule.steps
    return asset, {"steps": steps, "evaluations": sum(counts), "seconds": result.seconds["total"]}


class Judges:
    """What is said of an asset: by the scorer of the runs, and by networks that no run sees."""

    def __init__(self, scorer: Reward) -> None:
        self.scorer = scorer
        self.evaluation, self.classifier = load_evaluation_scorer(JUDGES), load_classifier(JUDGES)

    @torch.no_grad()
    def __call__(self, asset: Gaussians, color: str, name: str, prompt: str, truth: Tensor) -> Row:
        """`truth` [8, 64, 64] is the true object's coverage."""
        pictures, coverage = held_out_views(asset)
        classes, colors = (logits.log_softmax(1).mean(0) for logits in self.classifier(pictures))
        return {
            "reward": float(self.scorer.score(pictures, [prompt] * VIEWS).mean()),
            "other reward": float(self.evaluation(pictures).mean()),
            "class": float(classes[CLASS_NAMES.index(name)]),
            "colour": float(colors[COLOR_NAMES.index(color)]),
            "IoU": silhouette_iou(coverage, truth),
        }


paired_differences = partial(paired.paired_differences, base=BASE)
summary = partial(paired.summary, measures=MEASURES, base=BASE)
table = partial(paired.table, measures=MEASURES, base=BASE)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="draft", help="default: draft")
    count = len(PROMPTS)
    parser.add_argument(
        "--prompts", type=int, choices=range(1, count + 1), default=count, metavar="N",
        help=f"only the first so many of {count}",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all of them")
    parser.add_argument("--json", type=Path, help="also write the figures here, after every asset")
    parser.add_argument("flags", nargs="*", help="after --: passed on to generate")
    options = parser.parse_args(words)
    arms = [arm for arm in ARMS if arm == BASE or arm in options.arms]
    rows: list[Row] = []
    print(machine(), flush=True)
    try:
        given = ["--preset", options.preset, "--prompt", "a red mushroom", *options.flags]
        config = to_config(generate_settings(given))
        configs = {arm: validate(arm_config(config, arm)) for arm in arms}
        judges = Judges(make_reward(list(config.reward.reward) or ["embedded"]))
        for color, name in PROMPTS[: options.prompts]:
            prompt, truth = f"{'an' if color[0] in 'aeiou' else 'a'} {color} {name}", true_coverage(name)
            for seed in options.seeds:
                for arm in arms:
                    asset, cost = make_asset(replace(configs[arm], prompt=prompt, seed=seed))
                    said = judges(asset, color, name, prompt, truth)
                    rows.append({"prompt": prompt, "seed": seed, "arm": arm, **said, **cost})
                    facts = ", ".join(f"{key} {rows[-1][key]:.{MEASURES[key]}f}" for key in MEASURES)
                    print(f"{prompt}, seed {seed}, {arm}: {facts}", file=sys.stderr, flush=True)
                    if options.json:
                        data = {"machine": machine(), "version": __version__, "preset": options.preset}
                        data |= {"flags": options.flags, "summary": summary(rows), "rows": rows}
                        write_text(options.json, json.dumps(data, indent=2) + "\n")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        if rows:
            print(table(rows), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
