"""Training batches: random captions over rendered masks, and the pictures that the captions describe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpo3d_fast.priors.caption import VIEW_WORDS, Vocabulary, view_indices
from ddpo3d_fast.training.objects import CLASS_NAMES, CLASSES, COLOR_NAMES, COLORS, material_colors
from ddpo3d_fast.training.render import colorize

VOCABULARY = Vocabulary(objects=CLASS_NAMES, colors=COLOR_NAMES)


@dataclass
class Batch:
    """Pictures [B, 3, H, W] in [0, 1]; words [B, 4], cameras [B, 3], known [B, 1] for CaptionEncoder."""

    pictures: Tensor
    words: Tensor
    cameras: Tensor
    known: Tensor


class Batches:
    """Draws batches from rendered masks, recolouring every view anew."""

    def __init__(self, masks: Tensor, classes: Tensor, cameras: Tensor, seed: int, device: torch.device):
        self.masks, self.classes, self.cameras = masks.to(device), classes.to(device), cameras.to(device)
        self.views = view_indices(cameras).to(device)
        self.palette = torch.tensor([COLORS[c] for c in COLOR_NAMES], device=device)
        self.defaults = torch.stack([torch.from_numpy(material_colors(c)) for c in CLASS_NAMES]).to(device)
        self.has_second = torch.tensor([bool(CLASSES[c].details) for c in CLASS_NAMES], device=device)
        # Every view word equally often: overhead views are few, and the hardest to learn.
        counts = torch.bincount(self.views, minlength=len(VIEW_WORDS)).clamp_min(1)
        self.weights = (1.0 / counts)[self.views]
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def _chance(self, count: int, probability: float) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.device) < probability

    def _indices(self, count: int, end: int) -> Tensor:
        return torch.randint(end, (count,), generator=self.generator, device=self.device)

    def draw(self, count: int, drop_caption: float = 0.1) -> Batch:
        """A batch: 85 % name a colour, 20 % of objects with a second material name its colour too.

        Every view word is as likely as the others; the word is left out 20 % of the time, the camera 40 %,
        and everything with probability `drop_caption`.
        """
        picked = torch.multinomial(self.weights, count, replacement=True, generator=self.generator)
        thing, colors = self.classes[picked], len(COLOR_NAMES)
        palette = self.defaults[thing].clone()
        first, second = (self._indices(count, colors) for _ in range(2))
        named, two = self._chance(count, 0.85), self._chance(count, 0.2) & self.has_second[thing]
        palette[named, 0] = self.palette[first[named]]
        palette[two, 1] = self.palette[second[two]]
        jitter = torch.randn(palette.shape, generator=self.generator, device=self.device)
        palette = (palette + 0.03 * jitter).clamp(0, 1)
        white = self._chance(count, 0.5)[:, None]
        grey = torch.rand(count, 1, generator=self.generator, device=self.device)
        background = torch.where(white, 1.0, grey).expand(count, 3)
        pictures = colorize(self.masks[picked].float() / 255, palette, background)

        view = torch.where(self._chance(count, 0.2), len(VIEW_WORDS), self.views[picked])
        nothing = torch.tensor([len(CLASS_NAMES), colors, colors, len(VIEW_WORDS)], device=self.device)
        words = torch.stack(
            [thing, torch.where(named, first, colors), torch.where(two, second, colors), view], 1
        )
        empty = self._chance(count, drop_caption)
        words = torch.where(empty[:, None], nothing, words)
        known = (self._chance(count, 0.6) & ~empty).float()[:, None]
        return Batch(pictures, words, torch.cat([self.cameras[picked], background[:, :1]], 1), known)
