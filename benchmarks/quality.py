"""Are the assets what the prompts asked for, and what do the ways of making them change? The study.

    python benchmarks/quality.py [--preset standard] [--seeds 0 1] [--prompts 12 | --random 48 [--draw 0]]
        [--arms sds guide scene scene*4 ...] [--jobs N] [--json FILE] [--pictures DIR] [--sheet FILE.png]
        [--gallery FILE.png] [--plot FILE.svg] [--results docs/results.md] [--assets DIR] [-- FLAGS]

Prompts are 12 over different classes, or with --random so many drawn by the seed of --draw: a class, a
colour, and for half of those with a second material a second colour. An arm is one of those below, alone
`all`; NAME*W weighs its policy and guide W times as much. With the first one the others are compared.

    all        the settings as they are
    sds        score distillation alone; sds7 with one view and seven noises a step
    guide      and the reward's own gradient on the views
    noise      and the noise policy; noise7 with one view and seven noises a step
    rewardsds  noise7, its noises weighed as RewardSDS has it
    latent view scene  and that policy
    render     latent, rewarded by the rendered view: DDPO3D's figure, literally
    shuffled   scene with its advantages in a random order: the control; unordered is noise's
    csd nfsd ism sdi   score distillation alone, by another objective

Each asset is judged from 8 views between the training elevations:

    named           the judge of true renders names class and colour (and see `second_named`), of all 8 views
    class, colour   its mean log-probability of the prompt's
    IoU             of the silhouettes with those of the class's mean object
    reward, other   mean score by the run's rewards, in the file by name, too; by the evaluation scorer, which
                    no run follows
    evaluations     of the UNet: a noisy latent with and without the prompt is one
    seconds         of the whole run; processor: of all threads, which what else runs disturbs less

Intervals are percentile bootstraps of the paired difference to the first arm, over prompts (paired.py). What
the JSON file already has is not made again. --pictures keeps each asset's views, for --sheet and --gallery;
--results writes this study's section of a page, between its two markers. FLAGS are those of `ddpo3d-fast
generate`, for all arms. Ctrl-C ends with the tables of what there is.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import paired
import report
import torch
from arms import ARMS, arm_config, counted_evaluations
from torch import Tensor

from ddpo3d_fast import __version__
from ddpo3d_fast.arguments import generate_settings, to_config
from ddpo3d_fast.assets import contact_sheet, read_ply, write_png
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import read_json, write_text
from ddpo3d_fast.generate import generate
from ddpo3d_fast.info import machine
from ddpo3d_fast.kernels import set_num_threads
from ddpo3d_fast.rewards import make_reward, scores_of, short_names
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import Gaussians, orbit
from ddpo3d_fast.settings import Config
from ddpo3d_fast.training.classifier import load_classifier
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES, material_colors, mean_object
from ddpo3d_fast.training.render import Field, render_materials
from ddpo3d_fast.training.scorer import load_evaluation_scorer

PROMPTS = (
    ("red", "mushroom"),
    ("green", "tree"),
    ("blue", "car"),
    ("yellow", "duck"),
    ("purple", "chair"),
    ("orange", "rocket"),
    ("white", "house"),
    ("pink", "cake"),
    ("brown", "table"),
    ("gray", "robot"),
    ("black", "hat"),
    ("green", "cactus"),
)
VIEWS, ELEVATION, START = 8, math.radians(20), math.radians(22.5)
SIZE = 64
JUDGES = Path(__file__).parent / "judges"
SECOND = 1  # material that a second colour is of

MEASURES = {  # and their decimals in the tables
    "named": 2,
    "reward": 3,
    "other reward": 3,
    "class": 3,
    "colour": 3,
    "IoU": 3,
    "evaluations": 0,
    "seconds": 1,
    "processor": 1,
}


@dataclass(frozen=True)
class Wanted:
    """What a prompt names."""

    name: str
    color: str
    second: str | None = None

    @property
    def prompt(self) -> str:
        colors = self.color if self.second is None else f"{self.color} and {self.second}"
        return f"{'an' if colors[0] in 'aeiou' else 'a'} {colors} {self.name}"


def random_prompts(count: int, seed: int) -> list[Wanted]:
    """Different ones, drawn from all classes, colours and, for half of those of two materials, pairs of
    colours."""
    draw, found = random.Random(seed), dict[Wanted, None]()
    while len(found) < count:
        name = draw.choice(CLASS_NAMES)
        first, second = draw.sample(COLOR_NAMES, 2)
        two = any(part.material == SECOND for part in mean_object(name)) and draw.random() < 0.5
        found[Wanted(name, first, second if two else None)] = None
    return list(found)


def held_out_views(asset: Gaussians, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Pictures [8, 3, S, S] on white and coverage [8, S, S]; rendered at twice the size and averaged."""
    cameras = orbit(VIEWS, ELEVATION, START)
    views = asset.render(cameras, 2 * size, 2 * size, torch.ones(VIEWS, 3))
    pictures = torch.nn.functional.avg_pool2d(views.rgb.permute(0, 3, 1, 2), 2)
    return pictures.clamp(0, 1), torch.nn.functional.avg_pool2d(views.alpha[:, None], 2)[:, 0]


@functools.cache
def true_materials(name: str) -> Tensor:
    """[8, 5, 64, 64] of the class's mean individual: each material's shading, and the coverage."""
    field, cameras = Field(mean_object(name)), orbit(VIEWS, ELEVATION, START)
    return torch.stack([render_materials(field, float(a), ELEVATION, SIZE) for a in cameras.azimuth])


def true_coverage(name: str) -> Tensor:
    """[8, 64, 64] coverage of the class's mean individual."""
    return true_materials(name)[:, 4]


def silhouette_iou(coverage: Tensor, truth: Tensor) -> float:
    """Mean over the views of intersection over union of what is covered by more than half."""
    a, b = coverage > 0.5, truth > 0.5
    return float(((a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp_min(1)).mean())


def second_named(pictures: Tensor, name: str, color: str) -> str:
    """The colour whose mean individual is nearest to pictures [8, 3, 64, 64], where that shows its second
    material alone: there is no judge of it."""
    materials = true_materials(name)
    there = materials[:, SECOND] > 0.9 * materials[:, :4].sum(1)
    there &= materials[:, 4] > 0.99
    pixels = pictures.permute(0, 2, 3, 1)[there]
    distances = {}
    for second in COLOR_NAMES:
        palette = torch.from_numpy(material_colors(name, color, second))
        true = torch.einsum("vkhw,kc->vhwc", materials[:, :4], palette)[there]
        distances[second] = float((pixels - true).square().mean())
    return min(distances, key=distances.__getitem__)


class Judges:
    """What is said of an asset: by the scorer of the runs, and by networks that no run sees."""

    def __init__(self, rewards: tuple[str, ...]) -> None:
        self.scorer = make_reward(list(rewards) or ["embedded"])
        self.evaluation, self.classifier = load_evaluation_scorer(JUDGES), load_classifier(JUDGES)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, coverage: Tensor, wanted: Wanted) -> paired.Row:
        """Of views [8, 3, 64, 64] and coverage [8, 64, 64]."""
        classes, colors = (logits.log_softmax(1).mean(0) for logits in self.classifier(pictures))
        named = {"class": CLASS_NAMES[int(classes.argmax())], "color": COLOR_NAMES[int(colors.argmax())]}
        named["second"] = wanted.second and second_named(pictures, wanted.name, wanted.color)
        right = named == {"class": wanted.name, "color": wanted.color, "second": wanted.second}
        scores = scores_of(self.scorer, pictures, [wanted.prompt] * VIEWS)
        short = short_names(scores.each)
        return {
            "names": named,
            "named": float(right),
            "reward": float(scores.total.mean()),
            "rewards": {short[name]: float(each.mean()) for name, each in scores.each.items()},
            "other reward": float(self.evaluation(pictures).mean()),
            "class": float(classes[CLASS_NAMES.index(wanted.name)]),
            "colour": float(colors[COLOR_NAMES.index(wanted.color)]),
            "IoU": silhouette_iou(coverage, true_coverage(wanted.name)),
        }


@dataclass(frozen=True)
class Task:
    """An asset to make."""

    config: Config
    arm: str
    wanted: Wanted
    assets: Path | None  # where its folder is kept

    @property
    def facts(self) -> paired.Row:
        return {"prompt": self.wanted.prompt, "seed": self.config.seed, "arm": self.arm}

    @property
    def slug(self) -> str:
        return f"{self.wanted.prompt}-{self.config.seed}-{self.arm}".replace(" ", "-").replace("*", "x")


@functools.cache
def judges_of(rewards: tuple[str, ...]) -> Judges:
    """Once a process."""
    return Judges(rewards)


def make(task: Task) -> tuple[paired.Row, Tensor]:
    """A row of figures, and the views [8, 64, 64, 3]."""
    started, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as place, counted_evaluations() as counts:
        folder = (task.assets or Path(place)) / task.slug
        config = replace(task.config, prompt=task.wanted.prompt, output=folder)
        generate(config, RunFolder.create(config, overwrite=True), lambda row: None)
        seconds, processor = time.perf_counter() - started, time.process_time() - worked
        asset = Gaussians(*read_ply(folder / "asset.ply"))
    pictures, coverage = held_out_views(asset)
    said = judges_of(config.reward.reward)(pictures, coverage, task.wanted)
    cost = {"steps": config.schedule.steps, "evaluations": sum(counts), "seconds": seconds}
    cost["processor"] = processor
    return task.facts | said | cost, pictures.permute(0, 2, 3, 1)


def made(tasks: list[Task], jobs: int) -> Iterator[tuple[Task, paired.Row, Tensor]]:
    """Each when it is done; with several jobs in so many processes, whose kernels share the cores."""
    if jobs == 1:
        for task in tasks:
            yield task, *make(task)
        return
    spawn, share = multiprocessing.get_context("spawn"), max(1, len(os.sched_getaffinity(0)) // jobs)
    with ProcessPoolExecutor(jobs, spawn, initializer=set_num_threads, initargs=(share,)) as pool:
        running = {pool.submit(make, task): task for task in tasks}
        try:
            for future in as_completed(running):
                yield running[future], *future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def earlier_rows(path: Path | None, about: paired.Row) -> list[paired.Row]:
    """Those of a file of figures, if there is one. Raises InputError where it is about something else."""
    if path is None or not path.exists():
        return []
    known = read_json(path, "the figures of a study")
    if {key: known.get(key) for key in about} != about:
        raise InputError(f"--json: expected figures of {about}, or no file, got {path} of other settings")
    return list(known["rows"])


def named_table(rows: list[paired.Row]) -> str:
    """How many of each arm are named right, and class, colour and second colour; medians of the rest."""
    lines = [
        f"{'arm':14}{'assets':>6}{'right':>8}{'class':>7}{'colour':>8}{'second':>8}{'IoU':>8}{'seconds':>9}"
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        cells = [f"{statistics.fmean(row['named'] for row in mine):8.0%}"]
        for key, width in (("class", 7), ("color", 8), ("second", 8)):
            of = [row["names"][key] == row["wanted"][key] for row in mine if row["wanted"][key]]
            cells.append(f"{statistics.fmean(of):{width}.0%}" if of else f"{'-':>{width}}")
        iou, seconds = (statistics.median(row[key] for row in mine) for key in ("IoU", "seconds"))
        lines.append(f"{arm:14}{len(mine):6}{''.join(cells)}{iou:8.3f}{seconds:9.1f}")
    return "\n".join(lines)


def pictures_of(tasks: Iterable[Task], folder: Path, views: int) -> Tensor:
    """[N views, 64, 64, 3] of the assets, as they are kept; white where there are none yet."""
    strips = [report.read_views(folder / f"{task.slug}.png", VIEWS, SIZE) for task in tasks]
    return torch.cat([strip[:: VIEWS // views] for strip in strips])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--preset", default="standard")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    made.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first so many")
    made.add_argument("--random", type=int, metavar="N", help="so many prompts drawn at random instead")
    made.add_argument("--draw", type=int, default=0, help="seed of --random (default: 0)")
    made.add_argument("--arms", nargs="+", default=["all"], help=f"of {', '.join(ARMS)}, or NAME*WEIGHT")
    made.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    made.add_argument("--assets", type=Path, help="keep the run folders here, to look at")
    made.add_argument(
        "--json", type=Path, help="the figures, after every asset; what it has is not made again"
    )
    made.add_argument("--pictures", type=Path, help="keep each asset's views here")
    made.add_argument("--sheet", type=Path, help="contact sheet of all assets, four views each")
    made.add_argument("--gallery", type=Path, help="a row a prompt, of its first seed two views an arm")
    made.add_argument("--plot", type=Path, help="the differences and their intervals, as SVG")
    made.add_argument("--results", type=Path, help="page whose section of this study is written anew")
    made.add_argument("flags", nargs="*", help="after --: passed on to generate")
    return made


def main(words: list[str] | None = None) -> int:
    options = parser().parse_args(words)
    rows: list[paired.Row] = []
    base = options.arms[0]
    given = [Wanted(name, color) for color, name in PROMPTS[: options.prompts]]
    prompts = given if options.random is None else random_prompts(options.random, options.draw)
    about = {"preset": options.preset, "flags": options.flags, "random": options.random, "draw": options.draw}
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as place:
        pictures = options.pictures or Path(place)
        tasks: list[Task] = []
        try:
            words_of_run = ["--preset", options.preset, "--prompt", "a red mushroom", *options.flags]
            config = to_config(generate_settings(words_of_run))
            configs = {arm: arm_config(config, arm) for arm in options.arms}
            tasks = [
                Task(replace(configs[arm], seed=seed), arm, wanted, options.assets)
                for wanted in prompts
                for seed in options.seeds
                for arm in options.arms
            ]
            rows = earlier_rows(options.json, about)
            done = [{key: row[key] for key in ("prompt", "seed", "arm")} for row in rows]
            missing = [task for task in tasks if task.facts not in done]
            for task, row, views in made(missing, options.jobs):
                wanted = {"class": task.wanted.name, "color": task.wanted.color, "second": task.wanted.second}
                rows.append(row | {"wanted": wanted})
                write_png(pictures / f"{task.slug}.png", contact_sheet(views, columns=VIEWS, gap=0))
                told = " ".join(str(each) for each in row["names"].values() if each)
                facts = ", ".join(f"{key} {row[key]:.{MEASURES[key]}f}" for key in MEASURES)
                print(
                    f"{task.wanted.prompt}, seed {row['seed']}, {task.arm}: {told}, {facts}", file=sys.stderr
                )
                if options.json:
                    data = {"machine": machine(), "version": __version__, **about}
                    data |= {"summary": paired.summary(rows, MEASURES, base), "rows": rows}
                    write_text(options.json, json.dumps(data, indent=1) + "\n")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        finally:
            asked = [task.facts for task in tasks]
            rows = [row for row in rows if {key: row[key] for key in ("prompt", "seed", "arm")} in asked]
            rows.sort(key=lambda row: options.arms.index(row["arm"]))
            if rows:
                print(named_table(rows))
                if len(options.arms) > 1:
                    print(paired.table(rows, MEASURES, base), flush=True)
        if options.sheet:
            sheet = contact_sheet(pictures_of(tasks, pictures, 4), columns=4 * len(options.seeds), gap=1)
            write_png(options.sheet, sheet)
        if options.gallery:
            first = [task for task in tasks if task.config.seed == options.seeds[0]]
            gallery = contact_sheet(pictures_of(first, pictures, 2), columns=2 * len(options.arms), gap=1)
            write_png(options.gallery, gallery)
        if options.plot:
            write_text(options.plot, report.plot(paired.summary(rows, MEASURES, base), MEASURES, base))
        if options.results:
            text = report.section(rows, MEASURES, base, sys.argv[1:] if words is None else words, options)
            report.replace_section(options.results, "quality", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
