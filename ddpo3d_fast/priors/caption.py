"""The embedded prior's language: captions of an object, one or two colours and a view, and their encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

VIEW_WORDS = ("front", "side", "back", "overhead")
OVERHEAD_ELEVATION = math.radians(58)  # with which the shipped prior was trained; DreamFusion has 60


def view_indices(cameras: Tensor) -> Tensor:
    """[V] int64, which of VIEW_WORDS says how each camera sees the object: overhead above 58 degrees, front
    or back within 45 of it, else side.

    After DreamFusion (arXiv 2209.14988, section 3.2), whose overhead begins at 60. `cameras` [V, 2
    or more]: azimuth and elevation in radians first, any number of turns.
    """
    azimuth, elevation = cameras[:, 0].double(), cameras[:, 1].double()
    from_front = (torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi).abs()
    around = 1 - (from_front < math.pi / 4).long() + (from_front > 3 * math.pi / 4).long()
    return torch.where(elevation > OVERHEAD_ELEVATION, 3, around)


@dataclass(frozen=True)
class Vocabulary:
    """The words a prior was trained on. The index one past the end of each tuple means "not said"."""

    objects: tuple[str, ...]
    colors: tuple[str, ...]
    views: tuple[str, ...] = VIEW_WORDS


class CaptionEncoder(nn.Module):
    """Caption and camera to what conditions the UNet.

    Tokens to attend to, a vector for its class input, and a coarse layout for its input channels. The layout
    says where things are: a convolutional UNet sees no positions but through its padding, and at high noise
    the picture must come from the caption alone.

    The camera, when known, says the view more exactly than the view word does, as in MVDream (arXiv
    2308.16512); the background, known with it, keeps the model from guessing one, which a scene would fill
    with haze.
    """

    token_dim, pooled_dim, width = 128, 256, 128
    layout_channels, layout_size = 16, 8  # twice that size beside the latents

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.object = nn.Embedding(len(vocabulary.objects) + 1, self.width)
        self.color = nn.Embedding(len(vocabulary.colors) + 1, self.width)
        self.second_color = nn.Embedding(len(vocabulary.colors) + 1, self.width)
        self.view = nn.Embedding(len(vocabulary.views) + 1, self.width)
        self.camera = nn.Linear(10, self.width)
        self.join = nn.Sequential(
            nn.Linear(2 * self.width, self.width), nn.SiLU(), nn.Linear(self.width, self.token_dim)
        )
        self.pool = nn.Sequential(nn.Linear(4 * self.width, 192), nn.SiLU(), nn.Linear(192, self.pooled_dim))
        cells = self.layout_channels * self.layout_size**2
        self.layout = nn.Sequential(nn.Linear(4 * self.width, 384), nn.SiLU(), nn.Linear(384, cells))

    def forward(self, words: Tensor, cameras: Tensor, known: Tensor) -> dict[str, Tensor]:
        """`tokens` [B, 6, 128], `pooled` [B, 256] and `layout` [B, 16, 16, 16].

        Args:
            words: int64 [B, 4], indices of object, colour, second colour and view.
            cameras: float32 [B, 3], azimuth and elevation in radians, grey level of the background in [0, 1].
            known: float32 [B, 1], 1 where the camera counts, else 0.
        """
        thing, color, second = (
            self.object(words[:, 0]),
            self.color(words[:, 1]),
            self.second_color(words[:, 2]),
        )
        azimuth, elevation, background = cameras.split(1, dim=1)
        waves = [f(k * azimuth) for k in (1, 2, 3) for f in (torch.sin, torch.cos)]
        camera = (
            torch.cat([*waves, torch.sin(elevation), torch.sin(2 * elevation), 2 * background - 1], 1) * known
        )
        view = self.view(words[:, 3]) + self.camera(torch.cat([camera, known], 1))
        colored, seen = self.join(torch.cat([thing, color], 1)), self.join(torch.cat([thing, view], 1))
        said = torch.cat([thing, color, second, view], 1)
        coarse = self.layout(said).view(-1, self.layout_channels, self.layout_size, self.layout_size)
        return {
            "tokens": torch.stack([thing, color, second, view, colored, seen], 1),
            "pooled": self.pool(said),
            "layout": nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear"),
        }

    def nothing(self, count: int) -> Tensor:
        """Words [count, 4] of the empty prompt."""
        v = self.vocabulary
        return torch.tensor([[len(v.objects), len(v.colors), len(v.colors), len(v.views)]]).repeat(count, 1)
