"""How good is the prior? Samples of every class, colour and view word, named by a judge of true renders.

    python -m ddpo3d_fast.training.evaluate_prior --prior runs/prior  # a checkpoint
    python -m ddpo3d_fast.training.evaluate_prior --prior ddpo3d_fast/models/embedded

25 DDIM steps with classifier-free guidance, no camera given; seeded: sample k starts from the same noise in
every run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.priors.caption import VIEW_WORDS, CaptionEncoder
from ddpo3d_fast.priors.embedded import WEIGHTS
from ddpo3d_fast.training.batches import VOCABULARY
from ddpo3d_fast.training.classifier import load_classifier
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES
from ddpo3d_fast.training.prior import PATCH, Model, make_scheduler

# Azimuth and elevation in radians and the background's grey, one row for each of VIEW_WORDS.
TYPICAL_CAMERAS = torch.tensor([[0.0, 0.3, 1.0], [1.57, 0.3, 1.0], [3.14, 0.3, 1.0], [0.0, 1.27, 1.0]])


def load_prior(folder: Path) -> tuple[Model, str]:
    """The averaged weights of a training checkpoint (checkpoint.pt), or the weights of an exported folder
    (unet/ and text_encoder/ with their safetensors), and a line that says which it was.

    FileNotFoundError where neither is there.
    """
    model = Model()
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu")
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), state["average"], strict=True):
                parameter.copy_(average)
        origin = f"{checkpoint} at {state['samples']} samples"
    elif (folder / "unet").is_dir():
        for part, module in (("unet", model.denoiser.unet), ("text_encoder", model.text_encoder)):
            weights = load_file(folder / part / WEIGHTS)
            module.load_state_dict({name: weight.float() for name, weight in weights.items()})
        origin = str(folder)
    else:
        raise FileNotFoundError(f"{folder}: expected checkpoint.pt or a unet folder")
    return model.eval().requires_grad_(False), origin


def all_prompts() -> Tensor:
    """Words [1056, 4] (class, colour, no second colour, view) of every class x colour x view word."""
    table = torch.cartesian_prod(
        *(torch.arange(n) for n in (len(CLASS_NAMES), len(COLOR_NAMES), len(VIEW_WORDS)))
    )
    return torch.stack(
        [table[:, 0], table[:, 1], torch.full((len(table),), len(COLOR_NAMES)), table[:, 2]], 1
    )


@torch.inference_mode()
def sample(
    model: Model, words: Tensor, noise: Tensor, steps: int, guidance: float, known_cameras: bool = False
) -> Tensor:
    """Pictures [B, 3, 64, 64] in [0, 1]: deterministic DDIM from noise [B, 48, 16, 16], words int64 [B, 4].

    With `known_cameras`, each view word's typical camera and a white background are told as well.
    """
    trained_with: Any = make_scheduler()
    scheduler = library("diffusers", "sampling the prior").DDIMScheduler.from_config(trained_with.config)
    scheduler.set_timesteps(steps)
    count = len(words)
    both = torch.cat([words, CaptionEncoder(VOCABULARY).nothing(count)])
    cameras, known = torch.zeros(2 * count, 3), torch.zeros(2 * count, 1)
    if known_cameras:
        cameras[:count], known[:count] = TYPICAL_CAMERAS[words[:, 3]], 1.0
    latents = noise
    for timestep in scheduler.timesteps:
        inputs = torch.cat([latents, latents]), timestep.expand(2 * count)
        guess, empty = model(*inputs, both, cameras, known).float().chunk(2)
        latents = scheduler.step(empty + guidance * (guess - empty), int(timestep), latents).prev_sample
    return (pixel_shuffle(latents, PATCH) / 2 + 0.5).clamp(0, 1)


def share(right: Tensor, group: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Percentage of `right` (bool [M]) within each named group (int64 [M]) that has a sample."""
    return {
        name: round(100 * float(right[group == index].float().mean()), 1)
        for index, name in enumerate(names)
        if bool((group == index).any())
    }


def judge(classifier: nn.Module, pictures: Tensor, words: Tensor) -> dict[str, object]:
    """The table: class and colour right, in per cent, overall and per class, colour and view word."""
    with torch.inference_mode():
        answers = [classifier(chunk) for chunk in pictures.split(64)]
    class_right = torch.cat([a[0].argmax(1) for a in answers]) == words[:, 0]
    color_right = torch.cat([a[1].argmax(1) for a in answers]) == words[:, 1]
    table: dict[str, object] = {"samples": len(words)}
    for what, right in (("class_right", class_right), ("color_right", color_right)):
        table[what] = round(100 * float(right.float().mean()), 2)
        for group, (column, names) in {
            "class": (0, CLASS_NAMES),
            "color": (1, COLOR_NAMES),
            "view": (3, VIEW_WORDS),
        }.items():
            table[f"{what}_by_{group}"] = share(right, words[:, column], names)
    return table


def print_table(table: dict[str, object]) -> None:
    right = f"class right {table['class_right']} %, colour right {table['color_right']} %"
    print(f"{table['samples']} samples: {right}")
    for key, value in table.items():
        if isinstance(value, dict):
            line = "  ".join(
                f"{name} {percent:g}" for name, percent in sorted(value.items(), key=lambda item: item[1])
            )
            print(f"  {key.replace('_', ' ')}: {line}")


def save_sheet(path: Path, pictures: Tensor, columns: int) -> None:
    """A contact sheet PNG of pictures [M, 3, H, W], row by row."""
    missing = -len(pictures) % columns
    tiles = torch.cat([pictures, torch.ones(missing, *pictures.shape[1:])])
    rows = [torch.cat(list(row), 2) for row in tiles.split(columns)]
    sheet = (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(np.ascontiguousarray(sheet)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Sample the prior over its whole vocabulary and judge the samples."
    )
    parser.add_argument(
        "--prior", type=Path, default=Path("runs/prior"), help="training output or exported folder"
    )
    parser.add_argument("--judges", type=Path, default=Path("benchmarks/judges"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--cameras", action="store_true", help="tell the prior a camera, not the word alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="only so many prompts, spread over the vocabulary")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--bfloat16", action="store_true", help="faster on CPUs that multiply it in hardware")
    parser.add_argument("--sheet", type=Path, help="write the samples to this PNG")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    a = parser.parse_args()
    model, origin = load_prior(a.prior)
    classifier = load_classifier(a.judges)
    words = all_prompts()
    noise = torch.randn(len(words), 3 * PATCH**2, 16, 16, generator=torch.Generator().manual_seed(a.seed))
    chosen = torch.arange(len(words))
    if a.limit is not None and a.limit < len(words):
        # A stride prime to 24, 11 and 4 goes round classes, colours and views evenly.
        chosen = (torch.arange(a.limit) * 205) % len(words)
    chosen = chosen.sort().values
    words, noise = words[chosen], noise[chosen]
    started, pictures = time.time(), []
    for rows in torch.arange(len(words)).split(a.batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=a.bfloat16):
            pictures.append(sample(model, words[rows], noise[rows], a.steps, a.guidance, a.cameras))
        print(f"\r{len(rows) + a.batch * (len(pictures) - 1)}/{len(words)} samples", end="", flush=True)
    samples = torch.cat(pictures)
    print(
        f"\r{origin}: {a.steps} steps, guidance {a.guidance:g}, seed {a.seed}, {time.time() - started:.0f} s"
    )
    table = judge(classifier, samples, words)
    print_table(table)
    if a.json:
        a.json.write_text(
            json.dumps({"prior": origin, "steps": a.steps, "guidance": a.guidance, **table}, indent=2) + "\n"
        )
    if a.sheet:
        save_sheet(a.sheet, samples, columns=22)


if __name__ == "__main__":
    main()
