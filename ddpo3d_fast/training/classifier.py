"""The judge: a small convolutional network that names the class and the main colour of a 64 px view.

    python -m ddpo3d_fast.training.dataset --output runs/dataset
    python -m ddpo3d_fast.training.classifier --output runs/judge
    python -m ddpo3d_fast.training.classifier --start runs/judge --learning-rate 2e-3 --seed 1

It is trained on true renders only, roughened so that it also reads diffusion samples and splats, and no part
of the program uses it: it measures. Held-out individuals are those of the data set's last shards. Seeded;
minutes on a CPU."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate

from ddpo3d_fast.priors.caption import VIEW_WORDS
from ddpo3d_fast.training.degrade import KINDS, degrade, gaussian_blur
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES
from ddpo3d_fast.training.views import Views, ViewSource, composite, load_sources

SIZE = 64  # pixels of a view
WIDTHS = (48, 80, 144)  # channels at 32, 16 and 8 px


class Classifier(nn.Module):
    """Pictures float32 [B, 3, 64, 64] in [0, 1] -> class logits [B, 24] and colour logits [B, 11]."""

    def __init__(self, widths: tuple[int, ...], classes: int, colors: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        inside = 3 * 4
        for level, width in enumerate(widths):
            for repeat in range(2 if level == 0 else 3):
                stride = 2 if level > 0 and repeat == 0 else 1
                layers += [
                    nn.Conv2d(inside, width, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.SiLU(),
                ]
                inside = width
        self.tower = nn.Sequential(*layers)
        self.classes, self.colors = nn.Linear(inside, classes), nn.Linear(inside, colors)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = self.tower(pictures * 2 - 1).mean((2, 3))
        return self.classes(features), self.colors(features)


def load_classifier(folder: Path | str) -> Classifier:
    """The judge of `folder` (classifier.json, classifier.safetensors), ready to run, without gradients.

    Class k of its answers is `CLASS_NAMES[k]`, colour k `COLOR_NAMES[k]`. FileNotFoundError if missing.
    """
    folder = Path(folder)
    config = json.loads((folder / "classifier.json").read_text())
    model = Classifier(tuple(config["widths"]), len(config["classes"]), len(config["colors"]))
    weights = load_file(folder / "classifier.safetensors")
    model.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    return model.eval().requires_grad_(False)


def save_classifier(model: Classifier, folder: Path) -> None:
    """Writes classifier.json and classifier.safetensors, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"widths": WIDTHS, "classes": CLASS_NAMES, "colors": COLOR_NAMES, "size": SIZE}
    (folder / "classifier.json").write_text(json.dumps(config, indent=2) + "\n")
    half = {n: w.half().contiguous() if w.is_floating_point() else w for n, w in model.state_dict().items()}
    save_file(half, folder / "classifier.safetensors")


def _warp(layers: Tensor, rng: torch.Generator) -> Tensor:
    """Shifts, scales, tilts and bends layers [B, 4, H, W] a little; four in five of them."""
    batch, _, size, _ = layers.shape

    def within(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=rng) - 1

    moved = (torch.rand(batch, generator=rng) < 0.8).float()
    scale, tilt, shift = (
        1 + 0.2 * within(batch) * moved,
        0.15 * within(batch) * moved,
        0.15 * within(batch, 2),
    )
    matrix = torch.stack([scale * tilt.cos(), -scale * tilt.sin(), scale * tilt.sin(), scale * tilt.cos()], 1)
    theta = torch.cat([matrix.view(batch, 2, 2), (shift * moved[:, None])[:, :, None]], 2)
    bend = interpolate(0.05 * within(batch, 2, 5, 5), size=(size, size), mode="bicubic").permute(0, 2, 3, 1)
    grid = affine_grid(theta, list(layers.shape), align_corners=False) + bend * moved[:, None, None, None]
    return grid_sample(layers, grid, align_corners=False)


def _requantize(pictures: Tensor, step: Tensor) -> Tensor:
    """JPEG's loss: the cosine transform of every 8x8 block rounded to multiples of `step` [B] (0.02 is
    mild)."""
    n = torch.arange(8, dtype=torch.float32)
    basis = torch.cos(math.pi * (n[None] + 0.5) * n[:, None] / 8) * math.sqrt(2 / 8)
    basis[0] /= math.sqrt(2)
    blocks = pictures.unfold(2, 8, 8).unfold(3, 8, 8)
    table = step.view(-1, 1, 1, 1, 1, 1) * (1 + n[:, None] + n[None])
    coded = torch.round(basis @ blocks @ basis.T / table) * table
    return (basis.T @ coded @ basis).permute(0, 1, 2, 4, 3, 5).reshape(pictures.shape)


def roughen(views: Views, rng: torch.Generator) -> Tensor:
    """Training pictures [B, 3, H, W]: bent, some with mild flaws, blur, noise, coarse coding or a tint."""
    batch = len(views.layers)

    def chosen(probability: float) -> Tensor:
        return (torch.rand(batch, generator=rng) < probability).float()

    severities = torch.zeros(batch, len(KINDS))
    kinds = torch.tensor([KINDS.index(k) for k in ("floaters", "clipped", "swollen", "spotted")])
    kind = kinds[torch.randint(len(kinds), (batch,), generator=rng)]
    severities[torch.arange(batch), kind] = 0.35 * chosen(0.2) * torch.rand(batch, generator=rng)
    seed = int(torch.randint(2**31, (1,), generator=rng))
    pictures = degrade(_warp(views.layers, rng), views.backgrounds, severities, seed)
    pictures = gaussian_blur(pictures, 1.5 * chosen(0.5) * torch.rand(batch, generator=rng))
    step = 0.03 * torch.rand(batch, generator=rng) + 1e-3
    pictures = torch.lerp(pictures, _requantize(pictures, step), chosen(0.2)[:, None, None, None])
    noise = (0.08 * chosen(0.4) * torch.rand(batch, generator=rng))[:, None, None, None]
    pictures = pictures + noise * torch.randn(pictures.shape, generator=rng)
    tint = 1 + 0.08 * (2 * torch.rand(batch, 3, 1, 1, generator=rng) - 1) * chosen(0.5)[:, None, None, None]
    return (pictures * tint).clamp(0, 1)


def right_answers(model: nn.Module, source: ViewSource) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every view of `source` once, as it is: class right and colour right (bool [M]), class and view word
    (int64 [M])."""
    classes, colors, drawn = [], [], []
    with torch.inference_mode():
        for picked in torch.arange(len(source)).split(240):
            views = source.draw(len(picked), picked)
            class_logits, color_logits = model(composite(views.layers, views.backgrounds))
            classes.append(class_logits.argmax(1) == views.classes)
            colors.append(color_logits.argmax(1) == views.colors)
            drawn.append(views)
    return (
        torch.cat(classes),
        torch.cat(colors),
        torch.cat([v.classes for v in drawn]),
        torch.cat([v.words for v in drawn]),
    )


def report(model: nn.Module, source: ViewSource) -> None:
    """Prints the accuracy of both answers on held-out views, by view word, and the hardest classes."""
    class_right, color_right, classes, words = right_answers(model, source)
    total = f"class {class_right.float().mean():.2%}, colour {color_right.float().mean():.2%}"
    print(f"held out, {len(classes)} views: {total}")
    for index, word in enumerate(VIEW_WORDS):
        seen = words == index
        named, colored = class_right[seen].float().mean(), color_right[seen].float().mean()
        print(f"  {word:9s} class {named:.2%}, colour {colored:.2%}")
    by_class = torch.stack([class_right[classes == k].float().mean() for k in range(len(CLASS_NAMES))])
    worst = by_class.argsort()[:5].tolist()
    print("  hardest: " + ", ".join(f"{CLASS_NAMES[k]} {by_class[k]:.1%}" for k in worst), flush=True)


def train(
    dataset: Path, samples: int, batch: int, peak: float, seed: int, start: Path | None = None
) -> tuple[Classifier, ViewSource]:
    """One-cycle AdamW on cross-entropies of class and colour, from scratch or from the judge in `start`.

    Returns the network and the held-out views.
    """
    torch.manual_seed(seed)
    source, held_out = load_sources(dataset, seed)
    model = Classifier(WIDTHS, len(CLASS_NAMES), len(COLOR_NAMES))
    if start is not None:
        model = load_classifier(start).train().requires_grad_()
    count = sum(p.numel() for p in model.parameters())
    print(f"{len(source)} views, {len(held_out)} held out, {count / 1e6:.2f} M parameters", flush=True)
    steps = max(1, samples // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    started = time.time()
    for step in range(1, steps + 1):
        views = source.draw(batch)
        pictures = roughen(views, source.generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            class_logits, color_logits = model(pictures)
        loss = cross_entropy(class_logits.float(), views.classes) + cross_entropy(
            color_logits.float(), views.colors
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            rate = step * batch / (time.time() - started)
            print(f"{step * batch} samples  loss {loss.item():.4f}  {rate:.0f}/s", flush=True)
        if step % 500 == 0:
            report(model.eval(), held_out)
            model.train()
    return model.eval(), held_out


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the judge that names class and colour of a view.")
    parser.add_argument("--dataset", type=Path, default=Path("runs/dataset"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/judges"))
    parser.add_argument("--samples", type=int, default=160_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="go on from the judge in this folder")
    parser.add_argument(
        "--report", action="store_true", help="only print the held-out accuracy of what --output has"
    )
    a = parser.parse_args()
    if not a.report:
        model, _ = train(a.dataset, a.samples, a.batch, a.learning_rate, a.seed, a.start)
        save_classifier(model, a.output)
    _, held_out = load_sources(a.dataset, a.seed)
    report(load_classifier(a.output), held_out)


if __name__ == "__main__":
    main()
