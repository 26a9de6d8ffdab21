"""What judges and scorers see: recoloured renders as layers, on any background, with their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddpo3d_fast.priors.caption import VIEW_WORDS, view_indices
from ddpo3d_fast.training.dataset import load_shards
from ddpo3d_fast.training.objects import (
    CLASS_NAMES,
    CLASSES,
    COLOR_NAMES,
    COLORS,
    MATERIALS,
    material_colors,
)

OVERHEAD_WEIGHT = 4  # overhead views are drawn so many times as often: they are rare, and the hardest to tell
HELD_OUT_SHARDS = 2  # the last ones of the folder: individuals that no judge is trained on


@dataclass
class Views:
    """`layers` [B, 4, H, W]: colour times coverage, and coverage, in [0, 1]; `backgrounds` [B, 3, H, W] in
    [0, 1]; `classes`, `colors` and `words` int64 [B]: indices in CLASS_NAMES, COLOR_NAMES (main colour) and
    VIEW_WORDS."""

    layers: Tensor
    backgrounds: Tensor
    classes: Tensor
    colors: Tensor
    words: Tensor


def composite(layers: Tensor, backgrounds: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] of layers [B, 4, H, W] over backgrounds [B, 3, H, W]."""
    return layers[:, :3] + (1 - layers[:, 3:]) * backgrounds


def random_backgrounds(count: int, size: int, generator: torch.Generator) -> Tensor:
    """[count, 3, size, size]: a third white, a tenth black, a quarter grey, then tints and gradients."""
    kind = torch.rand(count, 1, generator=generator)
    grey = torch.rand(count, 1, generator=generator).expand(count, 3)
    tint = torch.rand(count, 3, generator=generator)
    flat = torch.where(kind < 0.33, 1.0, torch.where(kind < 0.43, 0.0, torch.where(kind < 0.71, grey, tint)))
    away = (tint + 0.5 * torch.rand(count, 3, generator=generator)).clamp(0, 1)
    away = torch.where(kind < 0.86, flat, away)[:, :, None, None]
    angle = 6.2832 * torch.rand(count, 1, 1, 1, generator=generator)
    at = torch.linspace(-1, 1, size)
    ramp = 0.5 + 0.35 * (
        torch.cos(angle) * at[None, None, None, :] + torch.sin(angle) * at[None, None, :, None]
    )
    return torch.lerp(
        flat[:, :, None, None].expand(-1, -1, size, size), away.expand(-1, -1, size, size), ramp
    )


class ViewSource:
    """Draws views from rendered masks, recolouring every one anew. Deterministic in `seed`."""

    def __init__(self, masks: Tensor, classes: Tensor, cameras: Tensor, seed: int) -> None:
        """masks uint8 [M, 5, H, W], classes int64 [M], cameras float32 [M, 2], as from `load_shards`."""
        self.masks, self.classes = masks, classes
        self.words = view_indices(cameras)
        self.palette = torch.tensor([COLORS[c] for c in COLOR_NAMES])
        self.defaults = torch.stack([torch.from_numpy(material_colors(c)) for c in CLASS_NAMES])
        self.default_index = torch.tensor([COLOR_NAMES.index(CLASSES[c].default_color) for c in CLASS_NAMES])
        overhead = self.words == VIEW_WORDS.index("overhead")
        self.weights = torch.where(overhead, float(OVERHEAD_WEIGHT), 1.0)
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.masks)

    def draw(self, count: int, picked: Tensor | None = None) -> Views:
        """`count` random views, or those of index `picked` [count]. One in ten has its class's own colour,
        one in five another second colour, half are mirrored; every material's colour is jittered by 0.03."""
        rng = self.generator
        if picked is None:
            picked = torch.multinomial(self.weights, count, replacement=True, generator=rng)
        classes = self.classes[picked]
        colors = torch.randint(len(COLOR_NAMES), (count,), generator=rng)
        colors = torch.where(torch.rand(count, generator=rng) < 0.1, self.default_index[classes], colors)
        second = self.palette[torch.randint(len(COLOR_NAMES), (count,), generator=rng)]
        palette = self.defaults[classes].clone()
        one_colored = (palette[:, 1] == palette[:, 0]).all(1)
        two = (torch.rand(count, generator=rng) < 0.2) & ~one_colored
        palette[:, 0] = self.palette[colors]
        palette[two, 1] = second[two]
        palette = (palette + 0.03 * torch.randn(palette.shape, generator=rng)).clamp(0, 1)
        masks = self.masks[picked].float() / 255
        mirrored = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
        masks = torch.where(mirrored, masks.flip(-1), masks)
        colored = torch.einsum("bkhw,bkc->bchw", masks[:, :MATERIALS], palette)
        layers = torch.cat([colored, masks[:, MATERIALS:]], 1)
        return Views(
            layers, random_backgrounds(count, masks.shape[-1], rng), classes, colors, self.words[picked]
        )


def load_sources(folder: Path, seed: int) -> tuple[ViewSource, ViewSource]:
    """A data set's training source and its held-out one, the individuals of the last HELD_OUT_SHARDS shards.

    FileNotFoundError without shards, ValueError with too few of them.
    """
    masks, classes, cameras = load_shards(folder)
    shards = len(list(folder.glob("shard-*.npz")))
    if shards <= HELD_OUT_SHARDS:
        raise ValueError(
            f"{folder}: expected more than {HELD_OUT_SHARDS} shards, the last are held out; found {shards}"
        )
    first = len(masks) * (shards - HELD_OUT_SHARDS) // shards  # shards are of equal size
    train = ViewSource(masks[:first], classes[:first], cameras[:first], seed)
    return train, ViewSource(masks[first:], classes[first:], cameras[first:], seed + 1)
