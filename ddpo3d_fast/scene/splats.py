"""Gaussians on their way through a run: rates, penalty, what becomes of their number, room on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddpo3d_fast.kernels import TileCapacity
from ddpo3d_fast.scene.base import Verdict
from ddpo3d_fast.scene.cameras import Cameras
from ddpo3d_fast.scene.densification import Densification, ScreenGradients
from ddpo3d_fast.scene.gaussians import Gaussians, LearningRates, Views
from ddpo3d_fast.scene.hull import outside_hull
from ddpo3d_fast.scene.initialise import initial_ball, initial_cloud
from ddpo3d_fast.scene.moved import Moved
from ddpo3d_fast.scene.relocation import Relocation
from ddpo3d_fast.scene.units import moved_channels
from ddpo3d_fast.settings import Scene
from ddpo3d_fast.step import Step, Tensors

FIRST_CAPACITY = 1 << 18  # pairs of a tile and a Gaussian to make room for on a GPU, 8 MiB; grows as needed


class Strategy(Protocol):
    """What becomes of the Gaussians' number in a round."""

    def __call__(
        self,
        gaussians: Gaussians,
        screen_gradients: Tensor,
        generator: torch.Generator,
        also_dead: Tensor | None = None,
    ) -> Gaussians:
        """The scene after it: the same one, changed in place, or a new one."""


@dataclass(frozen=True)
class Rounds:
    """When a strategy acts."""

    every: int
    """steps; 0: never"""
    until: float = 0.8
    """of the run, from where on no Gaussian moves or comes any more: what is new needs time"""
    carve_from: float = 1.0
    """of the run, after which what lies outside the scene's own silhouettes is dead, too"""

    def due(self, step: Step) -> bool:
        return bool(self.every) and step.number % self.every == 0 and step.fraction < self.until

    def carves(self, step: Step) -> bool:
        return step.fraction > self.carve_from


class Splats:
    """The scene of a run. It changes in place, so that CUDA graphs find it where it was, but where a method
    says otherwise."""

    def __init__(self, settings: Scene, seed: int, device: torch.device | str = "cpu") -> None:
        self.settings, self.rates = settings, learning_rates(settings)
        self.rounds = Rounds(settings.densify_every, carve_from=settings.carve_from)
        self.strategy = strategy_of(settings)
        self.densifies = self.rounds.every > 0 and isinstance(self.strategy, Densification)
        self.capacity = TileCapacity(FIRST_CAPACITY)
        self.moved_rooms = list[TileCapacity]()  # of the renderings of `moved`
        self._place(first_cloud(settings, seed).to(device))

    def _place(self, gaussians: Gaussians, rows: int = 0) -> None:
        self.gaussians = gaussians
        if self.densifies:
            # Graphs know the memory, which must not change with each round; nor by a resume, since sums over
            # the memory's rows might then have another order.
            gaussians.reserve(rows)
        self.screen = ScreenGradients(gaussians.rows, gaussians.device)

    def __len__(self) -> int:
        return len(self.gaussians)

    def moved_channels(self, moves: str) -> Tensor:
        """[C] 1 for the channels that --policy-moves names, 0 for the others."""
        return moved_channels(moves)

    def inputs(self, step: Step) -> Tensors:
        """What `update` reads of a step, on the CPU."""
        return {
            "rate_scale": rate_scales_at(step.fraction, self.settings),
            "step": torch.tensor([step.number]),
        }

    def render(self, cameras: Cameras, size: int, backgrounds: Tensor) -> Views:
        """Square views of V cameras over backgrounds [V, 3]. On a GPU nothing waits; where there was too
        little room, they are NaN and `update` does nothing (see `settle`)."""
        return self.gaussians.render(cameras, size, size, backgrounds, capacity=self.capacity)

    def moved(self, cameras: Cameras, size: int, picture: int, backgrounds: Tensor) -> Moved:
        """What renders pictures of `picture` pixels a side of the scene a little changed, for the cameras of
        a step whose views have `size`; none is larger than a picture. `update` is to be told of them."""
        rendered = min(size, picture)
        return Moved(self.gaussians, cameras, backgrounds, rendered, picture, self.moved_rooms)

    def update(
        self,
        views: Views,
        grad_rgb: Tensor,
        grad_alpha: Tensor,
        inputs: Tensors,
        pull: Tensor | None = None,
        moved: Moved | None = None,
    ) -> None:
        """One step of Adam, and what densification asks of the views.

        Args:
            views: V views, of `render`.
            grad_rgb: [V, N, N, 3], of a loss that is the mean of the views' own.
            grad_alpha: [V, N, N].
            inputs: of `inputs`, on the scene's device.
            pull: [R, C] that is added to the gradient of the parameters, as for `Gaussians.update`.
            moved: what else the step has rendered; where that lacked room, too, nothing is updated.
        """
        if moved is not None:
            views = views._replace(overflow=moved.without_room(views.overflow))
        screen = self.gaussians.update(
            views,
            grad_rgb,
            grad_alpha,
            self.rates,
            inputs["step"],
            opacity_penalty=self.settings.opacity_penalty,
            rate_scale=inputs["rate_scale"],
            pull=pull,
        )
        if self.densifies:
            self.screen.add(screen * len(grad_rgb), views.visible, grad_rgb.shape[1])

    def settle(self, step: Step) -> Verdict:
        """What follows a step, which the device has done. Where it found too little room, nothing was updated
        and it is to be done again, in more. Else, where it is due, dead Gaussians go and others are cloned or
        split, or dead ones move onto live ones."""
        rooms = [self.capacity, *self.moved_rooms]
        repeat = any(room.overflowed for room in rooms)
        grown = sum(room.grow() for room in rooms)  # all of them, now
        if repeat:
            return "again"
        moved = self._densify(step)
        return "changed" if grown or moved else "kept"

    def _densify(self, step: Step) -> bool:
        """A round, where one is due. Whether the Gaussians lie in new memory now."""
        if not self.rounds.due(step):
            return False
        haze = outside_hull(self.gaussians) if self.rounds.carves(step) else None
        asked = self.screen.mean()[: len(self.gaussians)]
        after = self.strategy(self.gaussians, asked, step.generator, haze)
        moved = after is not self.gaussians and not self.gaussians.become(after)
        if moved:
            self.screen = ScreenGradients(self.gaussians.rows, self.gaussians.device)
        elif self.densifies:
            self.screen.forget()
        return moved

    def state(self) -> dict[str, Any]:
        """All of it for a checkpoint, on the CPU."""
        asked = torch.stack([self.screen.total, self.screen.seen])[:, : len(self.gaussians)]
        return {
            "gaussians": self.gaussians.to("cpu").state_dict(),
            "rows": self.gaussians.rows,  # of memory
            "screen": asked.cpu(),  # [2, N]
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave, in new memory; "rows" is left out in checkpoints of earlier versions.
        Raises LookupError, TypeError or ValueError for what is missing or does not fit."""
        device = self.gaussians.device
        self._place(Gaussians.from_state_dict(state["gaussians"]).to(device), int(state.get("rows", 0)))
        for tensor, kept in zip((self.screen.total, self.screen.seen), state["screen"], strict=True):
            tensor[: len(self.gaussians)] = kept.to(device)


def first_cloud(settings: Scene, seed: int) -> Gaussians:
    """What a run begins with, on the CPU."""
    return (initial_ball if settings.cloud == "ball" else initial_cloud)(settings.gaussians, seed)


def strategy_of(settings: Scene) -> Strategy:
    """Densification where a gradient asks for it, else relocation."""
    if settings.densify_gradient:
        return Densification(
            threshold=settings.densify_gradient,
            split_above=settings.split_above,
            most=settings.max_gaussians,
            dead_opacity=settings.dead_opacity,
        )
    return Relocation(settings.dead_opacity)


def learning_rates(settings: Scene) -> LearningRates:
    """Of the first step."""
    return LearningRates(
        means=settings.means_rate,
        quats=settings.quats_rate,
        log_scales=settings.scales_rate,
        logit_opacities=settings.opacities_rate,
        sh=settings.colors_rate,
    )


def rate_scale_at(fraction: float, final: float, until: float = 1.0) -> float:
    """What multiplies a learning rate: exponential decay from 1 to `final`, reached at `until`."""
    return max(final, 1e-8) ** min(fraction / until, 1.0)


def rate_scales_at(fraction: float, settings: Scene) -> Tensor:
    """[5], what multiplies the learning rate of each of the scene's PARAMETERS."""
    means = rate_scale_at(fraction, settings.final_means_rate, settings.means_decay)
    return torch.tensor([means] + 4 * [rate_scale_at(fraction, settings.final_rate)])
