"""Are the assets what the prompts asked for? An independent judge names them from held-out views.

    python benchmarks/quality.py [--preset standard] [--seeds 0 1] [--assets DIR] [--sheet FILE.png]
                                 [--json FILE] [-- FLAGS]

For each of 12 prompts over different classes and each seed: generate, render 8 views between the training
elevations, let a classifier that was trained on true renders name class and colour (mean log-probability over
the views), and compare silhouettes with those of the true object. FLAGS are those of `ddpo3d-fast generate`,
for comparing settings.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import tyro

from ddpo3d_fast.assets import contact_sheet, read_ply, write_png
from ddpo3d_fast.configure import preset
from ddpo3d_fast.files import write_text
from ddpo3d_fast.generate import generate
from ddpo3d_fast.info import machine
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import Gaussians, orbit
from ddpo3d_fast.settings import Config
from ddpo3d_fast.training.classifier import load_classifier
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES, mean_object
from ddpo3d_fast.training.render import Field, render_materials

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


def held_out_views(asset: Gaussians, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [8, 3, S, S] on white and coverage [8, S, S]; rendered at twice the size and averaged."""
    cameras = orbit(VIEWS, ELEVATION, START)
    views = asset.render(cameras, 2 * size, 2 * size, torch.ones(VIEWS, 3))
    pictures = torch.nn.functional.avg_pool2d(views.rgb.permute(0, 3, 1, 2), 2)
    return pictures.clamp(0, 1), torch.nn.functional.avg_pool2d(views.alpha[:, None], 2)[:, 0]


def true_coverage(name: str) -> torch.Tensor:
    """[8, 64, 64] coverage of the class's mean individual."""
    field, cameras = Field(mean_object(name)), orbit(VIEWS, ELEVATION, START)
    return torch.stack([render_materials(field, float(a), ELEVATION, SIZE)[4] for a in cameras.azimuth])


def silhouette_iou(coverage: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over the views of intersection over union of what is covered by more than half."""
    a, b = coverage > 0.5, truth > 0.5
    return float(((a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp_min(1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first so many")
    parser.add_argument("--sheet", type=Path, help="contact sheet of all assets, four views each")
    parser.add_argument("--assets", type=Path, help="keep the run folders here, to look at")
    parser.add_argument("--json", type=Path)
    own, flags = sys.argv[1:], []
    if "--" in own:
        cut = own.index("--")
        own, flags = own[:cut], own[cut + 1 :]
    arguments = parser.parse_args(own)
    judge, rows, sheet = load_classifier(JUDGES), [], []
    print(f"{'prompt':18} {'seed':>4} {'named':20} {'IoU':>5} {'reward':>6} {'seconds':>7}")
    for color, name in PROMPTS[: arguments.prompts]:
        truth = true_coverage(name)
        for seed in arguments.seeds:
            prompt = f"{'an' if color[0] in 'aeiou' else 'a'} {color} {name}"
            config = tyro.cli(
                Config, args=["--prompt", prompt, *flags], default=preset(arguments.preset, prompt)
            )
            with tempfile.TemporaryDirectory() as place:
                folder = (arguments.assets or Path(place)) / f"{color}-{name}-{seed}"
                started, scores = time.perf_counter(), []

                def observe(row: dict, scores: list[float] = scores) -> None:
                    scores.append(row.get("reward", math.nan))

                generate(
                    replace(config, seed=seed, output=folder),
                    RunFolder.create(replace(config, output=folder), overwrite=True),
                    observe,
                )
                seconds = time.perf_counter() - started
                asset = Gaussians(*read_ply(folder / "asset.ply"))
            pictures, coverage = held_out_views(asset)
            with torch.no_grad():
                classes, colors = (logits.log_softmax(1).mean(0) for logits in judge(pictures))
            row = {
                "prompt": prompt,
                "seed": seed,
                "class": CLASS_NAMES[int(classes.argmax())],
                "color": COLOR_NAMES[int(colors.argmax())],
                "iou": silhouette_iou(coverage, truth),
                "seconds": seconds,
            }
            row["right"] = row["class"] == name and row["color"] == color
            rows.append(row)
            sheet.append(pictures[::2].permute(0, 2, 3, 1))
            named = f"{row['color']} {row['class']}{'' if row['right'] else ' !'}"
            print(
                f"{prompt:18} {seed:4} {named:20} {row['iou']:5.2f} {scores[-2]:6.2f} {seconds:7.1f}",
                flush=True,
            )
    right = sum(row["right"] for row in rows)
    iou, seconds = (statistics.median(row[key] for row in rows) for key in ("iou", "seconds"))
    print(f"named right {right} of {len(rows)}; median IoU {iou:.3f}; median {seconds:.1f} s")
    print(machine())
    if arguments.sheet:
        write_png(arguments.sheet, contact_sheet(torch.cat(sheet), columns=4 * len(arguments.seeds), gap=1))
    if arguments.json:
        facts = {"machine": machine(), "flags": flags, "rows": rows}
        write_text(arguments.json, json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
