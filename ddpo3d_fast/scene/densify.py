"""Gaussians where they are needed: dead ones move to live ones, or the number grows where the image asks for
more; and an export leaves out what nobody sees.

Relocation follows "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al., arXiv 2404.09591,
eq. 9): N never changes, so every buffer of the optimisation keeps its size. Densification follows "3D
Gaussian Splatting" (Kerbl et al., arXiv 2308.04079, section 5). Both are written from the papers.
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


SPLIT_SHRINK = 1.6  # of the halves' scales (3DGS, section 5.2)


def densify(
    gaussians: Gaussians,
    screen_gradients: Tensor,
    generator: torch.Generator,
    threshold: float,
    split_above: float,
    most: int,
    dead_opacity: float = DEAD_OPACITY,
    also_dead: Tensor | None = None,
) -> Gaussians:
    """A scene with more Gaussians where the image asks for them, and without the dead ones.

    A live Gaussian whose screen gradient reaches the threshold is cloned if it is small, else split into two
    drawn from its own normal. Adam's moments of what is new begin at 0.

    Args:
        gaussians: left as they are.
        screen_gradients: [N], of `ScreenGradients.mean`.
        generator: the only source of randomness; a CPU generator.
        threshold: normalised device coordinates, above 0.
        split_above: scale on the longest axis, world units, above which a Gaussian is split.
        most: Gaussians there may be; where that is too few, those of the largest gradients grow.
        dead_opacity: a Gaussian below this opacity, or with a parameter that is not finite, is dead.
        also_dead: [N] bool, Gaussians to leave out whatever their opacity; none if left out.

    Returns:
        The new scene; the old one if all of it is dead.

    Raises:
        ValueError: a threshold that is not positive, or screen_gradients of another shape than [N].
    """
    if not threshold > 0.0:
        raise ValueError(f"threshold: expected a positive number, got {threshold}")
    if screen_gradients.shape != (len(gaussians),):
        raise ValueError(
            f"screen_gradients: expected shape ({len(gaussians)},), got {tuple(screen_gradients.shape)}"
        )
    alive = (gaussians.logit_opacities.sigmoid() >= dead_opacity) & _finite_rows(gaussians)
    if also_dead is not None:
        alive &= ~also_dead
    if not bool(alive.any()):
        return gaussians
    grows = alive & (screen_gradients >= threshold)
    room = max(most - int(alive.sum()), 0)  # everything that grows makes one more
    first = torch.where(grows, screen_gradients, -1.0).argsort(descending=True, stable=True)[:room]
    grows &= torch.zeros_like(grows).index_fill(0, first, True)
    big = gaussians.log_scales.exp().amax(1) > split_above

    clones, halves = gaussians[grows & ~big], gaussians[grows & big]
    halves = halves[torch.arange(len(halves), device=halves.device).repeat(2)]
    normal = torch.randn(len(halves), 3, generator=generator).to(halves.device)
    halves.means += _rotate(halves.quats, normal * halves.log_scales.exp())
    halves.log_scales -= math.log(SPLIT_SHRINK)
    for born in (clones, halves):
        for moments in (born.exp_avg, born.exp_avg_sq):
            for name in PARAMETERS:
                moments[name].zero_()
    states = [part.state_dict() for part in (gaussians[alive & ~(grows & big)], clones, halves)]
    return Gaussians.from_state_dict({name: torch.cat([s[name] for s in states]) for name in states[0]})


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
