"""Where a scene is and how large: what a camera has to show of Gaussians that came from anywhere."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast.scene.gaussians import Gaussians

WHOLE, MARGIN = 0.95, 1.1  # a ball with so much of the weight is shown, and this times larger,
SPREAD = 3.0  # unless it is larger than so many of the ball with half of the weight
OWN_BALL = (0.3, 1.2)  # least radius, and most distance from the origin, of a scene that is shown as it is
INVISIBLE = 1 / 255  # opacity below which the rasterizer draws nothing


class Frame(NamedTuple):
    """A ball that fills a picture."""

    center: Tensor  # [3] float64, world
    radius: float


def frame_of(gaussians: Gaussians, center: Tensor | None = None) -> Frame:
    """The ball that holds what there is to see, whatever else lies far off.

    A Gaussian weighs its opacity, and less the larger it is, from the smallest quarter on: skies are huge.
    The centre is the weighted median of the means. The radius is that of `WHOLE` of the weight, so that a few
    floaters do not count wherever they are, or `SPREAD` times that of half of it if this is less, so that
    many do not move the rest out of sight. A scene that lies in this program's own ball around the origin, as
    its assets do, is shown as they are: centre 0, radius 1.

    Args:
        center: [3], world, if it is given; then there is no own ball.
    """
    means, opacities = gaussians.means.double(), gaussians.logit_opacities.double().sigmoid()
    sizes = gaussians.log_scales.double().amax(1).clamp(-600, 600).exp()  # neither 0 nor infinite
    weights = torch.where(opacities < INVISIBLE, 0.0, opacities)
    if not bool(weights.sum() > 0):
        return Frame(means.new_zeros(3) if center is None else center, 1.0)
    small = _quantile(sizes, (weights > 0).double(), 0.25)
    weights = weights * (small / sizes).clamp(max=1.0)
    middle = torch.stack([_quantile(axis, weights, 0.5) for axis in means.T]) if center is None else center
    reach = (means - middle).norm(dim=1) + sizes
    whole, half = (float(_quantile(reach, weights, share)) for share in (WHOLE, 0.5))
    radius = MARGIN * min(whole, SPREAD * half)
    least, most = OWN_BALL
    from_origin = float(_quantile(means.norm(dim=1) + sizes, weights, WHOLE))
    if center is None and radius >= least and from_origin <= most:
        return Frame(torch.zeros_like(middle), 1.0)
    return Frame(middle, radius if 0 < radius < math.inf else 1.0)


def framed(gaussians: Gaussians, frame: Frame) -> Gaussians:
    """The scene moved and scaled so that the frame's ball is the unit ball around the origin, where cameras
    look by default. Directions stay, and with them what the harmonics give."""
    means = ((gaussians.means.double() - frame.center) / frame.radius).float()
    log_scales = (gaussians.log_scales.double() - math.log(frame.radius)).float()
    return Gaussians(means, gaussians.quats, log_scales, gaussians.logit_opacities, gaussians.sh)


def _quantile(values: Tensor, weights: Tensor, share: float) -> Tensor:
    """[] the smallest of values [N] up to which lies this share of the weights [N]."""
    order = values.argsort()
    below = weights[order].cumsum(0)
    index = torch.searchsorted(below, share * below[-1])
    return values[order[index.clamp(max=len(values) - 1)]]
