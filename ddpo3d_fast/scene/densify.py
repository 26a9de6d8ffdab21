"""A fixed budget of Gaussians, well spent: dead ones move to live ones, and an export leaves them out.

Relocation follows "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al., arXiv 2404.09591,
eq. 9), written from the paper. N never changes, so every buffer of the optimisation keeps its size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpo3d_fast.scene.gaussians import PARAMETERS, Gaussians

DEAD_OPACITY = 0.005  # just above 1/255, below which a Gaussian is never drawn
MAX_COPIES = 51  # of one Gaussian at one place; more would only lose precision in the binomial sum


def relocate(
    gaussians: Gaussians,
    generator: torch.Generator,
    dead_opacity: float = DEAD_OPACITY,
    jitter: float = 0.2,
    also_dead: Tensor | None = None,
) -> int:
    """Moves dead Gaussians onto live ones, in place, so that the rendered image changes as little as
    possible.

    A live Gaussian is drawn for every dead one, with probability proportional to its opacity; the drawn one
    and its copies then share its opacity and shrink (`share_opacity`). Adam's moments of all of them restart
    at 0.

    Args:
        gaussians: changed in place.
        generator: the only source of randomness; a CPU generator.
        dead_opacity: a Gaussian below this opacity, or with a parameter that is not finite, is dead.
        jitter: copies are offset by a normal of this many of their deviations, because two equal Gaussians
            at one place would get equal gradients for ever (ours; the paper's noise on the positions does
            this there).
        also_dead: [N] bool, Gaussians to move whatever their opacity; none if left out.

    Returns:
        How many were moved; 0 if none is dead, or none alive.

    Raises:
        ValueError: dead_opacity outside (0, 1) or a negative jitter.
    """
    if not 0.0 < dead_opacity < 1.0:
        raise ValueError(f"dead_opacity: expected a number between 0 and 1, got {dead_opacity}")
    if not jitter >= 0.0:
        raise ValueError(f"jitter: expected 0 or more, got {jitter}")
    opacities = gaussians.logit_opacities.double().sigmoid()
    alive = (opacities >= dead_opacity) & _finite_rows(gaussians)
    if also_dead is not None:
        alive &= ~also_dead
    dead, live = (~alive).nonzero()[:, 0], alive.nonzero()[:, 0]
    if not len(dead) or not len(live):
        return 0
    # Drawn on the CPU whatever the device, so that the same generator draws the same.
    lots = torch.multinomial(opacities[live].cpu(), len(dead), replacement=True, generator=generator)
    drawn = live[lots.to(live.device)]
    sources, copies = drawn.unique(return_counts=True)
    opacity, shrink = share_opacity(opacities[sources], copies + 1)
    opacity = opacity.clamp(dead_opacity, 1 - 1e-6)  # as the authors do: never born dead
    gaussians.logit_opacities[sources] = (opacity / (1 - opacity)).log().float()
    gaussians.log_scales[sources] += shrink.log().float()[:, None]
    for name in PARAMETERS:
        parameter = getattr(gaussians, name)
        parameter[dead] = parameter[drawn]
        for moments in (gaussians.exp_avg, gaussians.exp_avg_sq):
            moments[name][dead] = 0
            moments[name][sources] = 0
    normal = torch.randn(len(dead), 3, generator=generator).to(dead.device)
    offset = normal * gaussians.log_scales[dead].exp()
    gaussians.means[dead] += jitter * _rotate(gaussians.quats[dead], offset)
    return len(dead)


def share_opacity(opacity: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """What n equal Gaussians at one place must be to look like the one they replace (eq. 9 of the paper).

        o_new = 1 - (1 - o)^(1 / n)
        shrink = o / sum over i = 1..n, k = 0..i-1 of C(i - 1, k) (-1)^k o_new^(k + 1) / sqrt(k + 1)

    The first keeps the opacity in the centre, the second the integral of the opacity along a line.

    Args:
        opacity: [M] o, in (0, 1).
        copies: [M] integers n, 1 or more; more than `MAX_COPIES` counts as that.

    Returns:
        (o_new, shrink), [M] float64 each; scales are to be multiplied by `shrink`.
    """
    old, number = opacity.double(), copies.clamp(max=MAX_COPIES)
    new = 1 - (1 - old) ** (1 / number.double())
    total = torch.zeros_like(old)
    for i in range(1, int(number.max()) + 1 if len(number) else 1):
        series = torch.zeros_like(old)
        for k in range(i):
            series += math.comb(i - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1)
        total += torch.where(number >= i, series, torch.zeros_like(series))
    return new, old / total


def prune(gaussians: Gaussians, dead_opacity: float = DEAD_OPACITY) -> Gaussians:
    """A new scene without what nobody would see, or no viewer could read: the faint and the not finite."""
    opacities = gaussians.logit_opacities.sigmoid()
    return gaussians[(opacities >= dead_opacity) & _finite_rows(gaussians)]


def _finite_rows(gaussians: Gaussians) -> Tensor:
    """[N] bool: every parameter of the Gaussian is a finite number."""
    tensors = [getattr(gaussians, name) for name in PARAMETERS]
    rows = [tensor.reshape(len(gaussians), math.prod(tensor.shape[1:])) for tensor in tensors]
    return torch.cat(rows, 1).isfinite().all(1)


def _rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    """Rotates [M, 3] vectors by [M, 4] quaternions (w, x, y, z): v + 2 w (u x v) + 2 u x (u x v)."""
    unit = torch.nn.functional.normalize(quats, dim=-1)
    w, u = unit[:, :1], unit[:, 1:]
    cross = torch.linalg.cross(u, vectors)
    return vectors + 2 * (w * cross + torch.linalg.cross(u, cross))
