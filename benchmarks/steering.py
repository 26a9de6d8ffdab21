"""Does a reward alone steer? Prompts that leave the colour open, and black-box rewards that want one.

    python benchmarks/steering.py [--preset draft] [--prompts 8] [--seeds 0 1] [--rewards bluer ...]
        [--sheet FILE.png] [--json FILE] [-- FLAGS]

    distillation   alone; always made, the other arms are compared with it
    longer         the same with a fifth more steps, for which the policy's scores and renderings would do
    scene          distillation and the scene policy, no guide
    shuffled       the same with its advantages in a random order: the control

The rewards are mean(blue - red), mean(green - red) and -mean of a picture, and the kB of it as JPEG of
quality 95, with either sign; the policy sees their scores alone. Each asset is judged from quality.py's
held-out views, its JPEG's size from the same at 128 pixels:

    reward      of the views
    as wanted   the classifier of true renders names the wanted colour; for darker, the object's mean
                luminance is at most three quarters of that by distillation alone; for smaller and larger, the
                size of a JPEG is 15 % less or more
    class       that classifier names the prompt's class
    IoU         of the silhouettes with those of the class's mean object

FLAGS are those of `ddpo3d-fast generate`, for all arms. What the JSON file already has is not made again, so
that a run may be cut off and go on. Ctrl-C ends with the table of what there is.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from quality import JUDGES, SIZE, held_out_views, silhouette_iou, true_coverage
from torch import Tensor

from ddpo3d_fast import __version__
from ddpo3d_fast.arguments import generate_settings, to_config
from ddpo3d_fast.assets import contact_sheet, read_ply, write_png
from ddpo3d_fast.configure import validate
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import read_json, write_text
from ddpo3d_fast.generate import generate
from ddpo3d_fast.info import machine
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import Gaussians
from ddpo3d_fast.settings import Config
from ddpo3d_fast.training.classifier import load_classifier
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES

OBJECTS = ("mushroom", "car", "hat", "boat", "duck", "chair", "rocket", "cake")
BASE = "distillation"
ARMS: dict[str, dict[str, Any]] = {  # of the reward's settings
    BASE: {"policy_weight": 0.0},
    "longer": {"policy_weight": 0.0},
    "scene": {"policy": "scene"},
    "shuffled": {"policy": "scene", "shuffle_advantages": True},
}
FREE = (BASE, "longer")  # arms without a reward
LONGER = 1.2  # times the steps
DARKER = 0.75  # of the luminance by distillation alone
SMALLER, LARGER = 0.85, 1.15  # times the size of its JPEG
JPEG_SIZE, QUALITY = 128, 95
LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709

Row = dict[str, Any]


def bluer(images: Tensor, prompts: list[str]) -> list[float]:
    return (images[:, 2] - images[:, 0]).mean((1, 2)).tolist()


def greener(images: Tensor, prompts: list[str]) -> list[float]:
    return (images[:, 1] - images[:, 0]).mean((1, 2)).tolist()


def darker(images: Tensor, prompts: list[str]) -> list[float]:
    return (-images.mean((1, 2, 3))).tolist()


def larger(images: Tensor, prompts: list[str]) -> list[float]:
    pictures = (255 * images).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [len(as_jpeg(picture)) / 1000 for picture in pictures]


def smaller(images: Tensor, prompts: list[str]) -> list[float]:
    return [-size for size in larger(images, prompts)]


def as_jpeg(picture: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


REWARDS: dict[str, tuple[Callable[..., list[float]], Callable[[Row, Row], bool]]] = {
    "bluer": (bluer, lambda said, base: said["color"] == "blue"),
    "greener": (greener, lambda said, base: said["color"] == "green"),
    "darker": (darker, lambda said, base: said["luminance"] <= DARKER * base["luminance"]),
    "smaller": (smaller, lambda said, base: said["kB"] <= SMALLER * base["kB"]),
    "larger": (larger, lambda said, base: said["kB"] >= LARGER * base["kB"]),
}
"""By name: the function, and whether what is said of an asset is as wanted, beside that of distillation"""


def luminance(pictures: Tensor, coverage: Tensor) -> float:
    """Mean of the pixels [V, 3, S, S] that the object covers by more than half, coverage [V, S, S]."""
    of_pixels = (pictures * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1)
    return float(of_pixels[coverage > 0.5].mean())


def make_asset(config: Config) -> tuple[Gaussians, float]:
    """The asset of a run, and its seconds."""
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder.create(replace(config, output=Path(place) / "run"))
        result = generate(folder.config, folder, lambda row: None)
        return Gaussians(*read_ply(folder.path / "asset.ply")), result.seconds["total"]


@torch.no_grad()
def judged(pictures: Tensor, coverage: Tensor, large: Tensor, name: str, judge: Any) -> Row:
    """What is said of an asset, whatever its reward; `large` are pictures of JPEG_SIZE."""
    classes, colors = (logits.log_softmax(1).mean(0) for logits in judge(pictures))
    return {
        "class": CLASS_NAMES[int(classes.argmax())] == name,
        "color": COLOR_NAMES[int(colors.argmax())],
        "IoU": silhouette_iou(coverage, true_coverage(name)),
        "luminance": luminance(pictures, coverage),
        "kB": statistics.fmean(larger(large, [])),
    }


def rows_of(
    said: Row, base: Row, pictures: Tensor, arm: str, rewards: tuple[str, ...], facts: Row
) -> list[Row]:
    """A row of an asset for each reward that it is held against; `base` is said of distillation alone."""
    rows = []
    for reward in rewards:
        function, is_wanted = REWARDS[reward]
        wanted = is_wanted(said, base)
        value = statistics.fmean(function(pictures, [""] * len(pictures)))
        rows.append(facts | said | {"arm": arm, "reward": reward, "value": value, "as wanted": wanted})
    return rows


def arm_of(config: Config, arm: str, reward: str, prompt: str, seed: int) -> Config:
    """The run of an arm."""
    named = (f"{Path(__file__).with_suffix('')}:{reward}",)
    mine = replace(config.reward, reward=named, **ARMS[arm])
    steps = round(config.schedule.steps * (LONGER if arm == "longer" else 1))
    schedule = replace(config.schedule, steps=steps)
    return validate(replace(config, prompt=prompt, seed=seed, reward=mine, schedule=schedule))


def earlier_rows(path: Path | None, about: Row) -> list[Row]:
    """Those of a file of figures, if there is one. Raises InputError where it is about something else."""
    if path is None or not path.exists():
        return []
    known = read_json(path, "figures")
    if {key: known.get(key) for key in about} != about:
        raise InputError(f"--json: expected a file of {about} or none, got {path} of other settings")
    return list(known["rows"])


def table(rows: list[Row]) -> str:
    """Means over the assets of each reward and arm, and the largest move of one from distillation alone."""
    lines = [
        f"{'reward':9}{'arm':14}{'assets':>6}{'value':>9}{'largest move':>14}{'as wanted':>11}{'class':>7}"
        f"{'IoU':>7}{'luminance':>11}{'kB':>7}{'seconds':>9}"
    ]
    base = {(r["reward"], r["prompt"], r["seed"]): r["value"] for r in rows if r["arm"] == BASE}
    for reward in dict.fromkeys(row["reward"] for row in rows):
        for arm in ARMS:
            found = [row for row in rows if (row["reward"], row["arm"]) == (reward, arm)]
            if not found:
                continue
            mean = {
                key: statistics.fmean(row[key] for row in found)
                for key in ("value", "as wanted", "class", "IoU", "luminance", "kB", "seconds")
            }
            moves = [row["value"] - base[reward, row["prompt"], row["seed"]] for row in found]
            lines.append(
                f"{reward if arm == BASE else '':9}{arm:14}{len(found):6}{mean['value']:+9.3f}"
                f"{max(moves, key=abs):+14.3f}{mean['as wanted']:11.0%}{mean['class']:7.0%}"
                f"{mean['IoU']:7.3f}{mean['luminance']:11.3f}{mean['kB']:7.3f}{mean['seconds']:9.1f}"
            )
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="draft", help="default: draft")
    parser.add_argument(
        "--prompts", type=int, choices=range(1, len(OBJECTS) + 1), default=len(OBJECTS), metavar="N",
        help=f"only the first so many of {len(OBJECTS)}",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=list(REWARDS))
    parser.add_argument("--sheet", type=Path, help="contact sheet: of an asset two views, a row a prompt")
    parser.add_argument("--json", type=Path, help="also write the figures here, after every asset")
    parser.add_argument("flags", nargs="*", help="after --: passed on to generate")
    options = parser.parse_args(words)
    judge, rows, sheet = load_classifier(JUDGES), list[Row](), list[Tensor]()
    wanted = tuple(options.rewards)
    runs = [(arm, wanted) for arm in FREE]
    runs += [(arm, (reward,)) for reward in wanted for arm in ARMS if arm not in FREE]
    print(machine(), flush=True)
    try:
        given = ["--preset", options.preset, "--prompt", "a mushroom", "--guide-weight", "0", *options.flags]
        config = to_config(generate_settings(given))
        about = {"preset": options.preset, "flags": options.flags}
        rows += earlier_rows(options.json, about)
        for name in OBJECTS[: options.prompts]:
            for seed in options.seeds:
                facts: Row = {"prompt": f"a {name}", "seed": seed}
                for arm, rewards in runs:
                    found = [row for row in rows if facts.items() <= row.items() and row["arm"] == arm]
                    done = {row["reward"] for row in found}
                    missing = tuple(reward for reward in rewards if reward not in done)
                    if not missing:
                        continue
                    asset, seconds = make_asset(arm_of(config, arm, rewards[0], **facts))
                    (pictures, coverage), (large, _) = (held_out_views(asset, s) for s in (SIZE, JPEG_SIZE))
                    said = judged(pictures, coverage, large, name, judge)
                    base = next((r for r in rows if facts.items() <= r.items() and r["arm"] == BASE), said)
                    new = rows_of(said, base, pictures, arm, missing, facts | {"seconds": seconds})
                    rows += new
                    sheet.append(pictures[::4].permute(0, 2, 3, 1))
                    for row in new:
                        told = f"{row['reward']}, {arm}: {row['value']:+.3f}, {row['color']}"
                        print(f"a {name}, seed {seed}, {told}", file=sys.stderr, flush=True)
                    if options.json:
                        data = {"machine": machine(), "version": __version__, **about, "rows": rows}
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
        if options.sheet and sheet:
            write_png(options.sheet, contact_sheet(torch.cat(sheet), columns=2 * len(runs), gap=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
