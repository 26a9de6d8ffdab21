"""More Gaussians, where the image asks for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpo3d_fast.scene.gaussians import DEAD_OPACITY, PARAMETERS, Gaussians, rotate

SPLIT_SHRINK = 1.6  # of the halves' scales (3DGS, section 5.2)


@dataclass(frozen=True)
class Densification:
    """Clones or splits live Gaussians whose screen gradient is large, and drops the dead.

    "3D Gaussian Splatting for Real-Time Radiance Field Rendering" (Kerbl et al., arXiv 2308.04079, section
    5.2), written from the paper. What reaches the threshold is cloned if it is small, else split into two
    drawn from its own normal. Adam's moments of what is new begin at 0.

    Raises ValueError for a threshold that is not positive.
    """

    threshold: float
    """of `ScreenGradients.mean`, in normalised device coordinates, above 0"""
    split_above: float
    """scale on the longest axis, world units, above which a Gaussian is split"""
    most: int
    """Gaussians there may be; where that is too few, those of the largest gradients grow"""
    dead_opacity: float = DEAD_OPACITY
    """a Gaussian below it is dead, as is one with a parameter that is not finite"""

    def __post_init__(self) -> None:
        if not self.threshold > 0.0:
            raise ValueError(f"threshold: expected a positive number, got {self.threshold}")

    def __call__(
        self,
        gaussians: Gaussians,
        screen_gradients: Tensor,
        generator: torch.Generator,
        also_dead: Tensor | None = None,
    ) -> Gaussians:
        """A new scene after a round; the old one if all of it is dead.

        Args:
            gaussians: left as they are.
            screen_gradients: [N], of `ScreenGradients.mean`.
            generator: the only source of randomness; a CPU generator.
            also_dead: [N] bool, Gaussians to leave out whatever their opacity; none if left out.

        Raises:
            ValueError: screen_gradients of another shape than [N].
        """
        if screen_gradients.shape != (len(gaussians),):
            raise ValueError(
                f"screen_gradients: expected shape ({len(gaussians)},), got {tuple(screen_gradients.shape)}"
            )
        alive = (gaussians.logit_opacities.sigmoid() >= self.dead_opacity) & gaussians.finite()
        if also_dead is not None:
            alive &= ~also_dead
        if not bool(alive.any()):
            return gaussians
        grows = alive & (screen_gradients >= self.threshold)
        room = max(self.most - int(alive.sum()), 0)  # everything that grows makes one more
        first = torch.where(grows, screen_gradients, -1.0).argsort(descending=True, stable=True)[:room]
        grows &= torch.zeros_like(grows).index_fill(0, first, True)
        big = gaussians.log_scales.exp().amax(1) > self.split_above

        clones, halves = gaussians[grows & ~big], gaussians[grows & big]
        halves = halves[torch.arange(len(halves), device=halves.device).repeat(2)]
        normal = torch.randn(len(halves), 3, generator=generator).to(halves.device)
        halves.means += rotate(halves.quats, normal * halves.log_scales.exp())
        halves.log_scales -= math.log(SPLIT_SHRINK)
        for born in (clones, halves):
            for moments in (born.exp_avg, born.exp_avg_sq):
                for name in PARAMETERS:
                    moments[name].zero_()
        states = [part.state_dict() for part in (gaussians[alive & ~(grows & big)], clones, halves)]
        return Gaussians.from_state_dict({name: torch.cat([s[name] for s in states]) for name in states[0]})


class ScreenGradients:
    """How far the image would move each Gaussian: the mean length of the gradient with respect to its centre
    on the screen, over all views of all steps that saw it."""

    def __init__(self, rows: int, device: torch.device | str = "cpu") -> None:
        """`rows` are those of the scene's memory, R."""
        self.total = torch.zeros(rows, device=device)  # changed in place: a CUDA graph may hold them
        self.seen = torch.zeros(rows, device=device)

    def add(self, grad_means2d: Tensor, visible: Tensor, size: int) -> None:
        """Counts C views in.

        Args:
            grad_means2d: [C, R, 2] of each view's own loss, in pixels (`Gaussians.update`).
            visible: [C, R] bool, who is seen (`Views.visible`).
            size: width and height of the views, pixels.
        """
        self.total += (grad_means2d.norm(dim=-1).nan_to_num(0, 0, 0) * visible).sum(0) * (size / 2)
        self.seen += visible.sum(0)

    def forget(self) -> None:
        """Begins anew."""
        self.total.zero_()
        self.seen.zero_()

    def mean(self) -> Tensor:
        """[R], in normalised device coordinates: an image is 2 wide and 2 high; 0 for what nobody saw."""
        return self.total / self.seen.clamp_min(1)
