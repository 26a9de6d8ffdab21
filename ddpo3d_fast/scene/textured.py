"""A mesh whose texture is refined, as a run's scene: DreamGaussian's second stage (arXiv 2309.16653, 3.3).

Its shape stays. The texels are what moves, under the same guidances that move Gaussians. Views are
supersampled, so that their edges are smooth and all texels that a pixel covers share in its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ddpo3d_fast.kernels import (
    TriangleHits,
    adam,
    rasterize_triangles,
    sample_texture,
    sample_texture_backward,
)
from ddpo3d_fast.resampling import resize
from ddpo3d_fast.scene.base import Verdict
from ddpo3d_fast.scene.cameras import Cameras
from ddpo3d_fast.step import Step, Tensors
from ddpo3d_fast.vectors import length_across

SAMPLES = 4  # of a pixel, along each side
UNIT = 0.3  # of a colour, the move that counts as 1: as for the Gaussians' (scene.units)
FINAL_RATE = 0.1  # to which the learning rate falls, linearly


class Shape(NamedTuple):
    """The part of a textured mesh that stays."""

    vertices: Tensor  # [V, 3] float32, in the unit ball
    triangles: Tensor  # [F, 3] int32
    corners: Tensor  # [F, 3, 2] float32 texture coordinates
    positions: Tensor  # [S, S, 3] float32 of the texels in the world
    present: Tensor  # [S, S] bool: which texels the surface has a place for

    def to(self, device: torch.device | str) -> Shape:
        return Shape(*(tensor.to(device).contiguous() for tensor in self))


class TexturedViews(NamedTuple):
    """Views of a textured mesh, and what they saw."""

    rgb: Tensor  # [V, N, N, 3], over the backgrounds
    alpha: Tensor  # [V, N, N]
    hits: TriangleHits  # of SAMPLES² times as many pixels


class Textured:
    """The scene of a refinement. All tensors stay where they are."""

    channels = 3

    def __init__(
        self, shape: Shape, texture: Tensor, rate: float, device: torch.device | str = "cpu"
    ) -> None:
        """`texture` [S, S, 3] in [0, 1] is copied; `rate` is Adam's learning rate at the first step."""
        self.shape, self.rate = shape.to(device), rate
        self.texture = texture.to(device, copy=True).contiguous()
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.texture), torch.zeros_like(self.texture)

    def __len__(self) -> int:
        return int(self.shape.present.sum())

    def moved_channels(self, moves: str) -> Tensor:
        """[3] ones, whatever is named: a texture has nothing but colours."""
        return torch.ones(3)

    def inputs(self, step: Step) -> Tensors:
        """The step's number and its learning rate."""
        scale = 1 - (1 - FINAL_RATE) * step.fraction
        return {"rate": torch.tensor([self.rate * scale]), "step": torch.tensor([step.number])}

    def render(self, cameras: Cameras, size: int, backgrounds: Tensor) -> TexturedViews:
        """Square views of V cameras over backgrounds [V, 3]."""
        return shaded(self.shape, self.texture, see(self.shape, cameras, size), size, backgrounds)

    def moved(self, cameras: Cameras, size: int, picture: int, backgrounds: Tensor) -> MovedTexture:
        """What renders pictures of it with other colours."""
        return MovedTexture(self, cameras, backgrounds, min(size, picture), picture)

    def update(
        self,
        views: TexturedViews,
        grad_rgb: Tensor,
        grad_alpha: Tensor,
        inputs: Tensors,
        pull: Tensor | None = None,
        moved: MovedTexture | None = None,
    ) -> None:
        """One step of Adam. No gradient of alpha reaches a texture."""
        del grad_alpha, moved
        side = self.texture.shape[0]
        spread = grad_rgb.repeat_interleave(SAMPLES, 1).repeat_interleave(SAMPLES, 2) / SAMPLES**2
        where = self.shape.corners, views.hits.triangles, views.hits.barycentrics
        grad = sample_texture_backward(spread.contiguous(), side, side, *where)
        if pull is not None:
            lengths = length_across(UNIT * grad.view(-1, 3), pull)[:, None]
            grad = grad + (lengths * pull / UNIT).view(side, side, 3)
        rates = inputs["rate"] if grad.device.type == "cuda" else float(inputs["rate"])
        adam(self.texture, grad, self.exp_avg, self.exp_avg_sq, inputs["step"], rates)
        self.texture.clamp_(0, 1)

    def settle(self, step: Step) -> Verdict:
        return "kept"

    def state(self) -> dict[str, Any]:
        moments = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {name: tensor.cpu().clone() for name, tensor in ({"texture": self.texture} | moments).items()}

    def load(self, state: dict[str, Any]) -> None:
        for name in ("texture", "exp_avg", "exp_avg_sq"):
            kept, given = getattr(self, name), state[name]
            if given.shape != kept.shape:
                raise ValueError(f"{name}: expected shape {tuple(kept.shape)}, got {tuple(given.shape)}")
            kept.copy_(given)


def see(shape: Shape, cameras: Cameras, size: int) -> TriangleHits:
    """What the samples of views of `size` pixels see."""
    side, device = SAMPLES * size, shape.vertices.device
    viewmats = cameras.viewmats.to(device, non_blocking=True)
    intrinsics = cameras.intrinsics(side, side).to(device, non_blocking=True)
    return rasterize_triangles(shape.vertices, shape.triangles, viewmats, intrinsics, side, side)


def shaded(
    shape: Shape, texture: Tensor, hits: TriangleHits, size: int, backgrounds: Tensor
) -> TexturedViews:
    """Views of `size` pixels, without light: a pixel is the mean of its samples."""
    colors = sample_texture(texture, shape.corners, hits.triangles, hits.barycentrics)
    covered = (hits.triangles >= 0).float()[:, None]
    alpha = avg_pool2d(covered, SAMPLES)[:, 0]
    rgb = avg_pool2d(colors.permute(0, 3, 1, 2), SAMPLES).permute(0, 2, 3, 1)
    behind = backgrounds.to(rgb.device, non_blocking=True)[:, None, None]
    return TexturedViews(rgb + (1 - alpha)[..., None] * behind, alpha, hits)


@dataclass(frozen=True)
class MovedTexture:
    """The scene of a step with other colours, for the step's own V cameras. The scene itself stays."""

    scene: Textured
    cameras: Cameras  # V
    backgrounds: Tensor  # [V, 3]
    rendered: int  # pixels of a view's side
    picture: int  # of the side of the picture made of it
    seen: list[TriangleHits] = field(default_factory=list)  # once asked for: by all views

    channels = 3  # red, green and blue

    @property
    def views(self) -> int:
        return len(self.cameras)

    @property
    def positions(self) -> Tensor:
        """[R, 3] of all texels."""
        return self.scene.shape.positions.view(-1, 3)

    @property
    def present(self) -> Tensor:
        """[R, 1]: 1 for texels that the surface has."""
        return self.scene.shape.present.view(-1, 1).float()

    def pictures_of(self, phi: Tensor, actions: Tensor, moves: str) -> Tensor:
        """[K, 2, 3, S, S] in [0, 1], what camera k mod V sees of the texture moved by phi [R, F] @ actions[k]
        [K, F, 3], in units, and by the opposite. A picture is linear in the texels: each view is rendered
        once, and what it shows of each move."""
        del moves  # a texture has nothing but colours
        plain = self._views(self.scene.texture, slice(None), self.backgrounds)
        nothing, pairs = torch.zeros(1, 3, device=phi.device), []
        for number, action in enumerate(actions):
            view = number % self.views
            change = (UNIT * (phi @ action)).view_as(self.scene.texture)
            shown = self._views(change, slice(view, view + 1), nothing)
            pairs.append(torch.cat([plain[view] + shown, plain[view] - shown]))
        return torch.stack(pairs).clamp(0, 1)

    def shown(self, values: Tensor) -> Tensor:
        """[V, F, S, S] what the cameras see of numbers of the texels [R, F] in place of colours, over
        zeros."""
        count = values.shape[1]
        nothing = torch.zeros(self.views, 3, device=values.device)
        threes = torch.nn.functional.pad(values, (0, -count % 3)).split(3, 1)
        parts = [self._views(part.reshape(self.scene.texture.shape), slice(None), nothing) for part in threes]
        return torch.cat(parts, 1)[:, :count]

    def _views(self, texture: Tensor, which: slice, backgrounds: Tensor) -> Tensor:
        """[V, 3, S, S] of some of the cameras, with another texture [S, S, 3]."""
        if not self.seen:
            self.seen.append(see(self.scene.shape, self.cameras, self.rendered))
        hits = TriangleHits(*(part[which] for part in self.seen[0]))
        views = shaded(self.scene.shape, texture.contiguous(), hits, self.rendered, backgrounds)
        return resize(views.rgb, self.picture)
