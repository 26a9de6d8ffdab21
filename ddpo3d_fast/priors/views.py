"""View-dependent prompts, after DreamFusion (arXiv 2209.14988, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpo3d_fast.priors.caption import VIEW_WORDS, view_indices


def view_prompts(text: str) -> list[str]:
    """The prompt seen from the front, the side, the back and overhead, in VIEW_WORDS' order."""
    return [f"{text}, {word} view" for word in VIEW_WORDS]


def view_weights(cameras: Tensor, interpolate: bool) -> Tensor:
    """How much of each view's embedding a camera sees: [V, 4], in VIEW_WORDS' order; each row sums to 1.

    Hard: one view, as `view_indices` says. Interpolated: linearly in azimuth between the two nearest of front
    (0), side (90) and back (180), but for overhead.

    Args:
        cameras: [V, 2 or more], azimuth and elevation in radians first; any number of turns.
        interpolate: whether embeddings are mixed.
    """
    views = torch.arange(len(VIEW_WORDS), device=cameras.device)
    seen = (view_indices(cameras)[:, None] == views).float()
    if not interpolate:
        return seen
    azimuth = cameras[:, 0].double()
    # Of a right angle, from the front: 0 to 2.
    turned = (torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi).abs() / (math.pi / 2)
    front, side, back = (1 - turned).clamp_min(0), 1 - (turned - 1).abs(), (turned - 1).clamp_min(0)
    around = torch.stack([front, side, back, torch.zeros_like(turned)], 1).float()
    return torch.where(seen[:, 3:] > 0, seen, around)
