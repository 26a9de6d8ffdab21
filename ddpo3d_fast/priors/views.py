"""View-dependent prompts, after DreamFusion (arXiv 2209.14988, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpo3d_fast.priors.caption import VIEW_WORDS

OVERHEAD_ELEVATION = math.radians(60)  # DreamFusion's; above it the azimuth does not count


def view_prompts(text: str) -> list[str]:
    """The prompt seen from the front, the side, the back and overhead, in VIEW_WORDS' order."""
    return [f"{text}, {word} view" for word in VIEW_WORDS]


def view_weights(cameras: Tensor, interpolate: bool) -> Tensor:
    """How much of each view's embedding a camera sees: [V, 4], in VIEW_WORDS' order; each row sums to 1.

    Hard: the front within 45 degrees of azimuth 0, the back beyond 135, the side between. Interpolated:
    linearly in azimuth between the two nearest of front (0), side (90) and back (180). Overhead is hard in
    both, as in DreamFusion.

    Args:
        cameras: [V, 2 or more], azimuth and elevation in radians first; any number of turns.
        interpolate: whether embeddings are mixed.
    """
    azimuth, elevation = cameras[:, 0].double(), cameras[:, 1].double()
    from_front = (torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi).abs() / (
        math.pi / 2
    )  # in [0, 2]
    if interpolate:
        side = 1 - (from_front - 1).abs()
        front, back = (1 - from_front).clamp_min(0), (from_front - 1).clamp_min(0)
    else:
        front, back = (from_front < 0.5).double(), (from_front > 1.5).double()
        side = 1 - front - back
    overhead = (elevation > OVERHEAD_ELEVATION).double()
    around = torch.stack([front, side, back], 1) * (1 - overhead)[:, None]
    return torch.cat([around, overhead[:, None]], 1).float()
