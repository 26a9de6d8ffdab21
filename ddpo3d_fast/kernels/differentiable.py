"""The Gaussian rasterizer as a differentiable torch function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .rasterizer import Rasterization, rasterize_backward, rasterize_forward


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        backgrounds: Tensor | None,
        viewmats: Tensor,
        means2d_offsets: Tensor | None,
        settings: dict[str, Any],
    ) -> tuple[Tensor, ...]:
        out, state = rasterize_forward(
            means,
            quats,
            scales,
            opacities,
            colors,
            viewmats,
            backgrounds=backgrounds,
            means2d_offsets=means2d_offsets,
            **settings,
        )
        # Saved through autograd, so that a change in place before the backward pass is noticed.
        ctx.save_for_backward(*state.inputs[:-1])
        ctx.state = state._replace(inputs=())
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(out.radii)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_rgb: Tensor | None, grad_alpha: Tensor | None, grad_depth: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        state = ctx.state._replace(inputs=(*ctx.saved_tensors, None))
        of_cameras = ctx.needs_input_grad[5] or ctx.needs_input_grad[6]  # backgrounds, viewmats
        grad = rasterize_backward(state, grad_rgb, grad_alpha, grad_depth, of_cameras=of_cameras)
        grads = (*grad[:5], grad.backgrounds, grad.viewmats, grad.means2d, None)
        return tuple(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=True))


def rasterize(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, 3] or [N, K, 3]
    viewmats: Tensor,  # [C, 4, 4]
    intrinsics: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,  # [C, 3]
    near: float = 0.01,
    far: float = 1e10,
    antialiased: bool = False,
    means2d_offsets: Tensor | None = None,  # [C, N, 2]
    max_entries: int | None = None,
) -> Rasterization:
    """Renders 3D Gaussians into C cameras (3D Gaussian Splatting, Kerbl et al. 2023), differentiably.

    Differentiable from rgb, alpha and depth to means, quats, scales, opacities, colors, backgrounds, viewmats
    and means2d_offsets. Same inputs, same bits, whatever the number of threads. A Gaussian with a number that
    is not finite, or a quaternion of length zero, counts as absent and gets a zero gradient. All tensors are
    float32.

    Args:
        means: centres in the world.
        quats: rotations (w, x, y, z), of any length but zero.
        scales: standard deviations along the rotated axes, after activation.
        opacities: 0 to 1, after activation.
        colors: colours, or with `sh_degree` the coefficients of real spherical harmonics, ordered and signed
            as in 3D Gaussian Splatting: colour = max(SH + 0.5, 0), no gradient where clamped; bands above
            `sh_degree` are not read. The camera's position is taken as -Rᵀt.
        viewmats: world to camera, R orthonormal; x right, y down, z forward.
        intrinsics: fx, fy, cx, cy in pixels; pixel centres lie at +0.5.
        width, height: of the images, pixels; 0 gives empty images.
        sh_degree: 0 to 3, or None for plain colours.
        backgrounds: colours behind everything; black if None.
        near, far: Gaussians whose camera z does not lie between them are left out.
        antialiased: scale opacities by √(det Σ / det Σ_dilated) (Mip-Splatting, Yu et al. 2024).
        means2d_offsets: pixels added to the projected means. Pass zeros that require a gradient, and after
            the backward pass their `.grad` is the screen-space gradient that densification asks for.
        max_entries: how many pairs of a tile of 16 pixels a side and a Gaussian that it may touch all views
            together may make, up to 2^32 - 1. A pair takes up to 28 bytes on the CPU and 32 on CUDA, and in
            the backward pass 40 or 48 more. None: 2^27, which is 4 GB and 6 GB more. They are counted before
            that memory is taken.

    Returns:
        Rasterization: rgb [C, H, W, 3], alpha [C, H, W], depth [C, H, W], radii [C, N] int32.

    Raises:
        TypeError: an argument is no tensor or of another dtype.
        ValueError: a shape, device, size, focal length, sh_degree, near or far does not fit.
        TooManyEntries: a ValueError; the Gaussians are too large for so many or such large images.
    """
    settings = {
        "intrinsics": intrinsics,
        "width": width,
        "height": height,
        "sh_degree": sh_degree,
        "near": near,
        "far": far,
        "antialiased": antialiased,
        "max_entries": max_entries,
    }
    out = _Rasterize.apply(
        means, quats, scales, opacities, colors, backgrounds, viewmats, means2d_offsets, settings
    )
    return Rasterization(*out)
