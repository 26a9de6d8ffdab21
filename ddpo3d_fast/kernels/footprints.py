"""The rasterizer from where Gaussians lie on the image: means, covariances and depths are the caller's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _backend
from ._backend import address, checked
from ._entries import DEFAULT_MAX_ENTRIES
from .rasterizer import Rasterization, RasterizeState, run_backward, run_forward
from .rules import OURS, Rules


class FootprintGradients(NamedTuple):
    """The gradient of a loss with respect to what was rendered; all float32."""

    means2d: Tensor  # [C, N, 2]
    covariances2d: Tensor  # [C, N, 3], xy's of the one number that both off-diagonals share
    depths: Tensor  # [C, N]
    opacities: Tensor  # [N]
    colors: Tensor  # [N, 3]
    backgrounds: Tensor | None  # [C, 3]


def rasterize_footprints_forward(
    means2d: Tensor,  # [C, N, 2]
    covariances2d: Tensor,  # [C, N, 3]
    depths: Tensor,  # [C, N]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, 3]
    width: int,
    height: int,
    *,
    backgrounds: Tensor | None = None,  # [C, 3]
    near: float = 1e-30,
    far: float = 1e30,
    antialiased: bool = False,
    rules: Rules = OURS,
    box_radii: Tensor | None = None,  # [C, N, 2] int32
) -> tuple[Rasterization, RasterizeState]:
    """The views, and what `rasterize_footprints_backward` needs.

    Args:
        means2d: pixels; pixel centres lie at +0.5.
        covariances2d: xx, xy, yy in px^2, before `rules.eps2d` is added. What is not positive definite then
            draws nothing.
        depths: what orders the Gaussians, and what the depth image blends; those not between near and far
            draw nothing.
        others: as `rasterize_forward`.

    Raises: as `rasterize_forward`.
    """
    means2d = checked("means2d", means2d, ("C", "N", 2))
    cameras, count = means2d.shape[:2]
    covariances2d = checked("covariances2d", covariances2d, (cameras, count, 3), means2d)
    depths = checked("depths", depths, (cameras, count), means2d)
    opacities = checked("opacities", opacities, (count,), means2d)
    colors = checked("colors", colors, (count, 3), means2d)
    if backgrounds is not None:
        backgrounds = checked("backgrounds", backgrounds, (cameras, 3), means2d)
    # The kernels load a camera, though nothing of it is used.
    viewmats = torch.eye(4, device=means2d.device).expand(cameras, 4, 4).contiguous()
    intrinsics = torch.eye(3, device=means2d.device).expand(cameras, 3, 3).contiguous()
    params = _backend.backend(means2d.device).RasterizeParams(
        num_gaussians=count,
        num_cameras=cameras,
        width=width,
        height=height,
        sh_degree=-1,
        activated=True,
        antialiased=antialiased,
        near=near,
        far=far,
        color_stride=3,
        means=0,
        quats=0,
        scales=0,
        opacities=address(opacities),
        colors=address(colors),
        viewmats=address(viewmats),
        intrinsics=address(intrinsics),
        backgrounds=address(backgrounds),
        means2d_offsets=0,
        **rules._asdict(),
        positions=0,
        means2d=address(means2d),
        covariances2d=address(covariances2d),
        depths=address(depths),
    )
    out = Rasterization(
        rgb=means2d.new_empty(cameras, height, width, 3),
        alpha=means2d.new_empty(cameras, height, width),
        depth=means2d.new_empty(cameras, height, width),
        radii=means2d.new_empty(cameras, count, dtype=torch.int32),
    )
    native = run_forward(params, out, box_radii, DEFAULT_MAX_ENTRIES, None)
    inputs = (means2d, covariances2d, depths, opacities, colors, backgrounds, viewmats, intrinsics)
    return out, RasterizeState(params, native, inputs, (cameras, height, width))


def rasterize_footprints_backward(
    state: RasterizeState,
    grad_rgb: Tensor | None,  # [C, H, W, 3]
    grad_alpha: Tensor | None = None,  # [C, H, W]
    grad_depth: Tensor | None = None,  # [C, H, W]
    *,
    means2d_abs: Tensor | None = None,  # [C, N, 2]
) -> FootprintGradients:
    """The vector-Jacobian product; arguments and errors as `rasterize_backward`."""
    means2d, covariances2d, depths, opacities, colors, backgrounds, *_ = state.inputs
    gradients = FootprintGradients(
        means2d=torch.empty_like(means2d),
        covariances2d=torch.empty_like(covariances2d),
        depths=torch.empty_like(depths),
        opacities=torch.empty_like(opacities),
        colors=torch.empty_like(colors),
        backgrounds=None if backgrounds is None else torch.empty_like(backgrounds),
    )
    addresses: dict[str, Any] = {name: address(tensor) for name, tensor in gradients._asdict().items()}
    addresses |= {"means": 0, "quats": 0, "scales": 0, "viewmats": 0, "means2d_abs": address(means2d_abs)}
    run_backward(state, grad_rgb, grad_alpha, grad_depth, 0.0, addresses, means2d)
    return gradients
