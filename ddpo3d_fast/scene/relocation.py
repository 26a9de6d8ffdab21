"""A fixed number of Gaussians, where they are needed: dead ones move to live ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpo3d_fast.scene.gaussians import DEAD_OPACITY, PARAMETERS, Gaussians, rotate

MAX_COPIES = 51  # of one Gaussian at one place; more would only lose precision in the binomial sum


@dataclass(frozen=True)
class Relocation:
    """Moves dead Gaussians onto live ones, so that the rendered image changes as little as possible.

    "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al., arXiv 2404.09591, section 4 and
    eq. 9), written from the paper. A live Gaussian is drawn for every dead one, with probability proportional
    to its opacity; the drawn one and its copies then share its opacity and shrink (`share_opacity`). Adam's
    moments of all of them restart at 0. Their number never changes, so every buffer keeps its size.

    Raises ValueError for a knob out of its range.
    """

    dead_opacity: float = DEAD_OPACITY
    """a Gaussian below it is dead, as is one with a parameter that is not finite; between 0 and 1"""
    jitter: float = 0.2
    """copies are offset by a normal of this many of their deviations, because two equal Gaussians at one
    place would get equal gradients for ever (ours; the paper's noise on the positions does this there)"""

    def __post_init__(self) -> None:
        if not 0.0 < self.dead_opacity < 1.0:
            raise ValueError(f"dead_opacity: expected a number between 0 and 1, got {self.dead_opacity}")
        if not self.jitter >= 0.0:
            raise ValueError(f"jitter: expected 0 or more, got {self.jitter}")

    def __call__(
        self,
        gaussians: Gaussians,
        screen_gradients: Tensor,
        generator: torch.Generator,
        also_dead: Tensor | None = None,
    ) -> Gaussians:
        """The same scene after a round; see `move`. Screen gradients do not count."""
        self.move(gaussians, generator, also_dead)
        return gaussians

    def move(self, gaussians: Gaussians, generator: torch.Generator, also_dead: Tensor | None = None) -> int:
        """Changes the scene in place; returns how many were moved: 0 if none is dead, or none alive.

        Args:
            generator: the only source of randomness; a CPU generator.
            also_dead: [N] bool, Gaussians to move whatever their opacity; none if left out.
        """
        opacities = gaussians.logit_opacities.double().sigmoid()
        alive = (opacities >= self.dead_opacity) & gaussians.finite()
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
        opacity = opacity.clamp(self.dead_opacity, 1 - 1e-6)  # as the authors do: never born dead
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
        gaussians.means[dead] += self.jitter * rotate(gaussians.quats[dead], offset)
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
