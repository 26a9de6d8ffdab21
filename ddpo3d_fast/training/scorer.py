"""Trains the scorers: networks that rank clean renders above degraded ones.

    python -m ddpo3d_fast.training.dataset --output runs/dataset
    python -m ddpo3d_fast.training.scorer --output ddpo3d_fast/models/embedded/scorer
    python -m ddpo3d_fast.training.scorer --output benchmarks/judges --evaluation --samples 70000

The first is the reward that runs optimise: a convolutional tower. The second judges what they made, and
nothing optimises it: another seed, and another architecture, a small transformer. Both learn from pairs
alone, by the logistic loss of Bradley and Terry, -log sigmoid(better - worse): of the same picture, more and
less degraded, and of different pictures, clean and degraded. Then they are scaled so that held-out clean
renders average 1 and fully degraded ones 0.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ddpo3d_fast.rewards.embedded import ScorerNetwork
from ddpo3d_fast.training.degrade import KINDS, degrade, single
from ddpo3d_fast.training.export import export_scorer
from ddpo3d_fast.training.views import Views, ViewSource, composite, load_sources

WIDTHS, DEPTHS = (32, 64, 128), (2, 2, 3)  # of the convolutional tower, by level
# The evaluation scorer's: channels, kernel and stride of each convolution of the stem, then the transformer.
STEM = ((32, 5, 2), (64, 3, 2), (64, 3, 1), (128, 3, 2))
LAYERS, HEADS = 2, 4
SHARES = {"clipped": 3.0, "washed": 2.0, "swollen": 1.5, "spotted": 1.5}  # in training; the hard ones; else 1
REPORT_VIEWS = 640  # held-out views in calibration and in the last report
REPORT_EVERY = 300  # steps


class Block(nn.Module):
    """A pre-norm transformer block over tokens [B, T, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        q, k, v = self.qkv(self.norm1(tokens)).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Plain products: their backward is much faster on a CPU than the fused attention's.
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        tokens = tokens + self.out((weights @ v).transpose(1, 2).reshape(batch, count, width))
        return tokens + self.mlp(self.norm2(tokens))


class StemTransformer(nn.Module):
    """Pictures [B, 3, 64, 64] in [0, 1] -> scores [B]: a convolutional stem to 64 tokens, a transformer."""

    def __init__(self, stem: tuple[tuple[int, int, int], ...], layers: int, heads: int) -> None:
        super().__init__()
        convolutions: list[nn.Module] = []
        inside = 3
        for channels, kernel, stride in stem:
            convolutions += [nn.Conv2d(inside, channels, kernel, stride, kernel // 2, bias=False)]
            convolutions += [nn.BatchNorm2d(channels), nn.GELU()]
            inside = channels
        self.stem, width = nn.Sequential(*convolutions[:-1]), inside
        self.position = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        tokens = self.stem(pictures * 2 - 1).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))[:, 0]


def load_evaluation_scorer(folder: Path | str) -> StemTransformer:
    """The evaluation scorer of a folder (scorer.json, scorer.safetensors), its weights without gradients."""
    folder = Path(folder)
    config = json.loads((folder / "scorer.json").read_text())
    model = StemTransformer(config["stem"], config["layers"], config["heads"])
    weights = load_file(folder / "scorer.safetensors")
    model.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    return model.eval().requires_grad_(False)


def fold(model: ScorerNetwork) -> ScorerNetwork:
    """The same network with every batch norm folded into the convolution before it."""
    folded = ScorerNetwork(WIDTHS, DEPTHS)
    model.eval()
    convolutions = [m for m in model.tower if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.tower if isinstance(m, nn.BatchNorm2d)]
    targets = [m for m in folded.tower if isinstance(m, nn.Conv2d)]
    for target, convolution, norm in zip(targets, convolutions, norms, strict=True):
        target.load_state_dict(fuse_conv_bn_eval(convolution, norm).state_dict())
    folded.head.load_state_dict(model.head.state_dict())
    return folded.eval()


def draw_severities(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Severities [count, kinds], lesser and greater, of one kind, or in a fifth of them of two or three."""
    mixed = torch.rand(count, generator=rng) < 0.2
    kinds = torch.where(mixed, torch.randint(2, 4, (count,), generator=rng), 1)
    shares = torch.tensor([SHARES.get(kind, 1.0) for kind in KINDS])
    # The largest of u^(1/share) is a draw in proportion to the shares.
    keys = torch.rand(count, len(KINDS), generator=rng) ** (1 / shares)
    order = keys.argsort(1, descending=True).argsort(1)
    more = (order < kinds[:, None]) * (0.2 + 0.8 * torch.rand(count, len(KINDS), generator=rng))
    # The lesser one keeps at least a sixth of the distance, so that the order can be seen.
    return more * 0.85 * torch.rand(count, 1, generator=rng), more


def pair_loss(clean: Tensor, less: Tensor, more: Tensor) -> Tensor:
    """Logistic loss over scores [B]: pairs of the same picture, and every clean with every degraded one."""
    same = softplus(less - clean).mean() + softplus(more - clean).mean() + softplus(more - less).mean()
    across = softplus(torch.cat([less, more])[None] - clean[:, None]).mean()
    return same + across


@torch.inference_mode()
def scores_of(model: nn.Module, pictures: Tensor) -> Tensor:
    return torch.cat([model(chunk).float() for chunk in pictures.split(128)])


def held_out_views(source: ViewSource, count: int) -> Views:
    """`count` views spread over the whole source."""
    return source.draw(count, torch.linspace(0, len(source) - 1, count).long())


def calibrate(model: ScorerNetwork | StemTransformer, views: Views, seed: int) -> None:
    """Scales the head: the clean views average 1, the same ones fully degraded, over all kinds, 0."""
    clean = scores_of(model, composite(views.layers, views.backgrounds)).mean()
    full = torch.ones(len(views.layers))
    degraded = [degrade(views.layers, views.backgrounds, single(kind, full), seed) for kind in KINDS]
    worst = torch.stack([scores_of(model, pictures).mean() for pictures in degraded]).mean()
    with torch.no_grad():
        model.head.weight /= clean - worst
        model.head.bias.copy_((model.head.bias - worst) / (clean - worst))


def pair_accuracy(model: nn.Module, views: Views, seed: int) -> dict[str, tuple[float, float, float]]:
    """By kind, the share of pairs in the right order: clean and degraded (severity 0.2 to 1), less and more
    of the same picture (0.25 or more apart), clean and degraded of different pictures."""
    count = len(views.layers)
    rng = torch.Generator().manual_seed(seed)
    clean = scores_of(model, composite(views.layers, views.backgrounds))
    table = {}
    for kind in KINDS:
        more = 0.45 + 0.55 * torch.rand(count, generator=rng)
        less = 0.2 + (more - 0.45) * torch.rand(count, generator=rng)
        either = torch.where(torch.rand(count, generator=rng) < 0.5, more, less)
        a, b, c = (
            scores_of(model, degrade(views.layers, views.backgrounds, single(kind, s), seed))
            for s in (less, more, either)
        )
        right = (clean > c, a > b, clean > c.roll(count // 3))
        same, graded, across = (float(r.float().mean()) for r in right)
        table[kind] = (same, graded, across)
    return table


def report(model: nn.Module, views: Views, seed: int) -> None:
    table = pair_accuracy(model, views, seed)
    print(f"{'held-out pairs in order':24s} clean > degraded   less > more   across pictures")
    columns = torch.tensor(list(table.values())).mean(0).tolist()
    for kind, row in [*table.items(), ("all", columns)]:
        print(f"  {kind:22s} {row[0]:16.1%} {row[1]:13.1%} {row[2]:17.1%}", flush=True)


def train(dataset: Path, evaluation: bool, samples: int, batch: int, peak: float, seed: int) -> nn.Module:
    """One-cycle AdamW over `samples` views, three pictures each; calibrated on held-out views."""
    torch.manual_seed(seed)
    source, held_out = load_sources(dataset, seed)
    views_out = held_out_views(held_out, REPORT_VIEWS)
    model = (
        StemTransformer(STEM, LAYERS, HEADS) if evaluation else ScorerNetwork(WIDTHS, DEPTHS, normalize=True)
    )
    count = sum(p.numel() for p in model.parameters())
    print(f"{len(source)} views, {len(held_out)} held out, {count / 1e6:.2f} M parameters", flush=True)
    steps = max(1, samples // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)
    started, running = time.time(), 0.0
    for step in range(1, steps + 1):
        views = source.draw(batch)
        less, more = draw_severities(batch, source.generator)
        flaws = int(torch.randint(2**31, (1,), generator=source.generator))
        layers, backgrounds = views.layers, views.backgrounds
        severities = (torch.zeros_like(less), less, more)
        pictures = torch.cat([degrade(layers, backgrounds, s, flaws) for s in severities])
        pictures = pictures + 0.004 * torch.randn(pictures.shape, generator=source.generator)
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(pictures.contiguous(memory_format=torch.channels_last))
        loss = pair_loss(*scores.float().chunk(3))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running += loss.item()
        if step % 100 == 0 or step == steps:
            rate = step * batch / (time.time() - started)
            print(f"{step * batch} views  loss {running / 100:.4f}  {rate:.0f}/s", flush=True)
            running = 0.0
        if step % REPORT_EVERY == 0:
            report(model.eval(), held_out_views(held_out, REPORT_VIEWS // 4), seed + 100)
            model.train()
    shipped = model.eval() if isinstance(model, StemTransformer) else fold(model)
    calibrate(shipped, views_out, seed + 200)
    report(shipped, views_out, seed + 100)
    return shipped


def save(model: nn.Module, folder: Path) -> None:
    """Writes fp16 weights and config: model.safetensors and its graphs, or scorer.safetensors of the
    evaluation one."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict().items()
    half = {name: w.half().contiguous() if w.is_floating_point() else w for name, w in weights}
    evaluation = isinstance(model, StemTransformer)
    config: dict[str, object] = {"widths": WIDTHS, "depths": DEPTHS}
    if evaluation:
        config = {"stem": STEM, "layers": LAYERS, "heads": HEADS}
    names = ("scorer.json", "scorer.safetensors") if evaluation else ("config.json", "model.safetensors")
    (folder / names[0]).write_text(json.dumps(config, indent=2) + "\n")
    save_file(half, folder / names[1])
    if not evaluation:
        export_scorer(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the scorer, or with --evaluation the one that judges."
    )
    parser.add_argument("--dataset", type=Path, default=Path("runs/dataset"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--evaluation", action="store_true", help="the independent one: a transformer")
    parser.add_argument("--samples", type=int, default=100_000, help="views, three pictures each")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, help="0.002, or 0.0015 with --evaluation")
    parser.add_argument("--seed", type=int, help="1, or 2 with --evaluation")
    a = parser.parse_args()
    peak = a.learning_rate or (1.5e-3 if a.evaluation else 2e-3)
    seed = a.seed if a.seed is not None else (2 if a.evaluation else 1)
    save(train(a.dataset, a.evaluation, a.samples, a.batch, peak, seed), a.output)


if __name__ == "__main__":
    main()
