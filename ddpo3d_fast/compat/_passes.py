"""The rasterizer's passes on autograd's tape, for callers that look at the forward pass before they tape it.

A peer's results name what is visible, and have the means on the image as a tensor that keeps its gradient: so
the forward pass comes first, then those tensors are made, then the pass is put on the tape behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddpo3d_fast.kernels import (
    Given,
    Rasterization,
    RasterizeState,
    Rules,
    rasterize_backward,
    rasterize_footprints_backward,
    rasterize_footprints_forward,
    rasterize_forward,
)

Tell = Callable[[Tensor], None]  # is told the absolute sums [C, N, 2] in the backward pass


class Frame(NamedTuple):
    """What pictures are taken of, and how."""

    width: int  # pixels
    height: int
    near: float
    far: float
    antialiased: bool
    rules: Rules


class _Scene(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, out: Rasterization, state: RasterizeState, tell: Tell | None, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        given = state.inputs[-1]
        ctx.save_for_backward(*state.inputs[:-1], *given)
        ctx.state, ctx.given, ctx.tell = state._replace(inputs=()), type(given), tell
        ctx.set_materialize_grads(False)
        return out.rgb, out.alpha, out.depth

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_rgb: Tensor | None, grad_alpha: Tensor | None, grad_depth: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *inputs, positions, means2d = ctx.saved_tensors
        state = ctx.state._replace(inputs=(*inputs, ctx.given(positions, means2d)))
        wanted = ctx.needs_input_grad[3:]
        absolute = torch.empty_like(means2d) if ctx.tell else None
        grad = rasterize_backward(
            state, grad_rgb, grad_alpha, grad_depth, of_cameras=wanted[5] or wanted[6], means2d_abs=absolute
        )
        if ctx.tell:
            ctx.tell(absolute)
        grads = (*grad[:5], grad.backgrounds, grad.viewmats, grad.means2d)
        return None, None, None, *(g if w else None for g, w in zip(grads, wanted, strict=True))


class _Footprints(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, out: Rasterization, state: RasterizeState, tell: Tell | None, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*state.inputs)
        ctx.state, ctx.tell = state._replace(inputs=()), tell
        ctx.set_materialize_grads(False)
        return out.rgb, out.alpha, out.depth

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_rgb: Tensor | None, grad_alpha: Tensor | None, grad_depth: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        state = ctx.state._replace(inputs=ctx.saved_tensors)
        absolute = torch.empty_like(ctx.saved_tensors[0]) if ctx.tell else None
        grad = rasterize_footprints_backward(state, grad_rgb, grad_alpha, grad_depth, means2d_abs=absolute)
        if ctx.tell:
            ctx.tell(absolute)
        wanted = ctx.needs_input_grad[3:]
        return None, None, None, *(g if w else None for g, w in zip(grad, wanted, strict=True))


class Pass:
    """A forward pass that has run, with what it needs to be put on the tape."""

    out: Rasterization
    box_radii: Tensor  # [C, N, 2] int32, half the sides of the bounding boxes, pixels; 0 where not drawn
    radii: Tensor  # [C, N] int32

    def on_tape(self, means2d: Tensor, tell: Tell | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """rgb, alpha and depth, differentiable. `means2d` has the values that the pass was given."""
        raise NotImplementedError


class ScenePass(Pass):
    """Of Gaussians in space, whose means on the image [C, N, 2] are given beside them."""

    def __init__(
        self,
        means: Tensor,  # [N, 3]
        quats: Tensor,  # [N, 4]
        scales: Tensor,  # [N, 3]
        opacities: Tensor,  # [N]
        colors: Tensor,  # [N, 3] or [N, K, 3]
        viewmats: Tensor,  # [C, 4, 4]
        intrinsics: Tensor,  # [C, 3, 3]
        means2d: Tensor,  # [C, N, 2]
        frame: Frame,
        *,
        sh_degree: int | None = None,
        positions: Tensor | None = None,  # [C, 3]
        backgrounds: Tensor | None = None,  # [C, 3]
    ) -> None:
        self._tensors = (means, quats, scales, opacities, colors, backgrounds, viewmats)
        self.box_radii = torch.empty(means2d.shape, dtype=torch.int32, device=means.device)
        self.out, self._state = rasterize_forward(
            means.detach(),
            quats.detach(),
            scales.detach(),
            opacities.detach(),
            colors.detach(),
            viewmats.detach(),
            intrinsics.detach(),
            frame.width,
            frame.height,
            sh_degree=sh_degree,
            backgrounds=None if backgrounds is None else backgrounds.detach(),
            near=frame.near,
            far=frame.far,
            antialiased=frame.antialiased,
            rules=frame.rules,
            given=Given(positions, means2d),
            box_radii=self.box_radii,
        )
        self.radii = self.out.radii

    def on_tape(self, means2d: Tensor, tell: Tell | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return _Scene.apply(self.out, self._state, tell, *self._tensors, means2d)


class FootprintPass(Pass):
    """Of Gaussians on the image."""

    def __init__(
        self,
        means2d: Tensor,  # [C, N, 2]
        covariances2d: Tensor,  # [C, N, 3]
        depths: Tensor,  # [C, N]
        opacities: Tensor,  # [N]
        colors: Tensor,  # [N, 3]
        frame: Frame,
        *,
        backgrounds: Tensor | None = None,  # [C, 3]
    ) -> None:
        self._tensors = (covariances2d, depths, opacities, colors, backgrounds)
        self.box_radii = torch.empty(means2d.shape, dtype=torch.int32, device=means2d.device)
        self.out, self._state = rasterize_footprints_forward(
            means2d.detach(),
            covariances2d.detach(),
            depths.detach(),
            opacities.detach(),
            colors.detach(),
            frame.width,
            frame.height,
            backgrounds=None if backgrounds is None else backgrounds.detach(),
            near=frame.near,
            far=frame.far,
            antialiased=frame.antialiased,
            rules=frame.rules,
            box_radii=self.box_radii,
        )
        self.radii = self.out.radii

    def on_tape(self, means2d: Tensor, tell: Tell | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return _Footprints.apply(self.out, self._state, tell, means2d, *self._tensors)
