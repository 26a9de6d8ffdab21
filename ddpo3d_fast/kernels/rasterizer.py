"""The Gaussian rasterizer as a torch function, and as a forward and a backward without autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._backend import _C, address, checked

MAX_SIDE = 32768  # pixels


class Rasterization(NamedTuple):
    """Rendered views."""

    rgb: Tensor  # [C, H, W, 3]
    alpha: Tensor  # [C, H, W] 1 - transmittance
    depth: Tensor  # [C, H, W] sum of weight x camera z: not normalised, no background
    radii: Tensor  # [C, N] int32, pixels: half the longer side of the bounding box, 0 where nothing is drawn


class RasterizeGradients(NamedTuple):
    """The gradient of a loss with respect to what was rendered; all float32."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    colors: Tensor  # [N, 3] or [N, K, 3]
    backgrounds: Tensor | None  # [C, 3]; None if no backgrounds were given
    viewmats: Tensor  # [C, 4, 4], the last row zero
    means2d: Tensor  # [C, N, 2] with respect to the projected means, in pixels


class RasterizeState(NamedTuple):
    """What `rasterize_backward` needs of a forward pass. The tensors must not be changed in between."""

    params: Any  # _C.RasterizeParams: addresses of the tensors below
    native: Any  # _C.RasterizeState: tile lists and per-pixel results
    # means, quats, scales, opacities, colors, viewmats, intrinsics, backgrounds, means2d_offsets
    inputs: tuple[Any, ...]
    image_shape: tuple[int, int, int]  # C, H, W


def _size(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not 0 <= value <= MAX_SIDE:
        raise ValueError(f"{name}: expected 0 to {MAX_SIDE} pixels, got {value}")
    return value


def rasterize_forward(
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
) -> tuple[Rasterization, RasterizeState]:
    """`rasterize` without autograd: the views, and what `rasterize_backward` needs.

    Arguments, results and errors as there.
    """
    means = checked("means", means, ("N", 3))
    count = means.shape[0]
    quats = checked("quats", quats, (count, 4), means)
    scales = checked("scales", scales, (count, 3), means)
    opacities = checked("opacities", opacities, (count,), means)
    if sh_degree is None:
        colors = checked("colors", colors, (count, 3), means)
    else:
        if isinstance(sh_degree, bool) or not isinstance(sh_degree, int):
            raise TypeError(f"sh_degree: expected None or an int, got {type(sh_degree).__name__}")
        if not 0 <= sh_degree <= 3:
            raise ValueError(f"sh_degree: expected 0 to 3, got {sh_degree}")
        colors = checked("colors", colors, (count, "K", 3), means)
        if colors.shape[1] < (sh_degree + 1) ** 2:
            raise ValueError(
                f"colors: expected at least {(sh_degree + 1) ** 2} coefficients for sh_degree {sh_degree}, "
                f"got {colors.shape[1]}"
            )
    viewmats = checked("viewmats", viewmats, ("C", 4, 4), means)
    cameras = viewmats.shape[0]
    intrinsics = checked("intrinsics", intrinsics, (cameras, 3, 3), means)
    if cameras and not bool((intrinsics.detach().diagonal(dim1=1, dim2=2)[:, :2] > 0).all()):
        raise ValueError("intrinsics: expected positive focal lengths at [:, 0, 0] and [:, 1, 1]")
    width, height = _size("width", width), _size("height", height)
    if backgrounds is not None:
        backgrounds = checked("backgrounds", backgrounds, (cameras, 3), means)
    if means2d_offsets is not None:
        means2d_offsets = checked("means2d_offsets", means2d_offsets, (cameras, count, 2), means)
    for name, value in (("near", near), ("far", far)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not isinstance(antialiased, bool):
        raise TypeError(f"antialiased: expected a bool, got {type(antialiased).__name__}")
    if not 0 < near < far:
        raise ValueError(f"near, far: expected 0 < near < far, got near {near} and far {far}")

    params = _C.RasterizeParams(
        num_gaussians=count,
        num_cameras=cameras,
        width=width,
        height=height,
        sh_degree=-1 if sh_degree is None else sh_degree,
        antialiased=antialiased,
        near=near,
        far=far,
        color_stride=3 if sh_degree is None else 3 * colors.shape[1],
        means=address(means),
        quats=address(quats),
        scales=address(scales),
        opacities=address(opacities),
        colors=address(colors),
        viewmats=address(viewmats),
        intrinsics=address(intrinsics),
        backgrounds=address(backgrounds),
        means2d_offsets=address(means2d_offsets),
    )
    rgb = torch.empty(cameras, height, width, 3)
    alpha = torch.empty(cameras, height, width)
    depth = torch.empty(cameras, height, width)
    radii = torch.empty(cameras, count, dtype=torch.int32)
    native = _C.RasterizeState()
    _C.rasterize_forward_cpu(
        params, native, rgb=address(rgb), alpha=address(alpha), depth=address(depth), radii=address(radii)
    )
    inputs = (means, quats, scales, opacities, colors, viewmats, intrinsics, backgrounds, means2d_offsets)
    state = RasterizeState(params, native, inputs, (cameras, height, width))
    return Rasterization(rgb, alpha, depth, radii), state


def rasterize_backward(
    state: RasterizeState,
    grad_rgb: Tensor | None,  # [C, H, W, 3]
    grad_alpha: Tensor | None = None,  # [C, H, W]
    grad_depth: Tensor | None = None,  # [C, H, W]
) -> RasterizeGradients:
    """The vector-Jacobian product of the `rasterize_forward` that returned `state`; may be called repeatedly.

    Args:
        grad_rgb, grad_alpha, grad_depth: d(loss)/d(output), float32; None counts as zero.

    Raises:
        TypeError, ValueError: a gradient's dtype, shape or device is not that of the output.
    """
    if not isinstance(state, RasterizeState):
        raise TypeError(f"state: expected what rasterize_forward returned, got {type(state).__name__}")
    shape = state.image_shape
    if grad_rgb is not None:
        grad_rgb = checked("grad_rgb", grad_rgb, (*shape, 3))
    if grad_alpha is not None:
        grad_alpha = checked("grad_alpha", grad_alpha, shape)
    if grad_depth is not None:
        grad_depth = checked("grad_depth", grad_depth, shape)

    means, quats, scales, opacities, colors, viewmats, _, backgrounds, _ = state.inputs
    gradients = RasterizeGradients(
        means=torch.empty_like(means),
        quats=torch.empty_like(quats),
        scales=torch.empty_like(scales),
        opacities=torch.empty_like(opacities),
        colors=torch.empty_like(colors),
        backgrounds=None if backgrounds is None else torch.empty_like(backgrounds),
        viewmats=torch.empty_like(viewmats),
        means2d=torch.empty(viewmats.shape[0], means.shape[0], 2),
    )
    _C.rasterize_backward_cpu(
        state.params,
        state.native,
        grad_rgb=address(grad_rgb),
        grad_alpha=address(grad_alpha),
        grad_depth=address(grad_depth),
        **{name: address(tensor) for name, tensor in gradients._asdict().items()},
    )
    return gradients


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
        ctx.save_for_backward(*state.inputs)
        ctx.state = state._replace(inputs=())
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(out.radii)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_rgb: Tensor | None, grad_alpha: Tensor | None, grad_depth: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        state = ctx.state._replace(inputs=ctx.saved_tensors)
        grad = rasterize_backward(state, grad_rgb, grad_alpha, grad_depth)
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

    Returns:
        Rasterization: rgb [C, H, W, 3], alpha [C, H, W], depth [C, H, W], radii [C, N] int32.

    Raises:
        TypeError: an argument is no tensor or of another dtype.
        ValueError: a shape, device, size, focal length, sh_degree, near or far does not fit.
    """
    settings = {
        "intrinsics": intrinsics,
        "width": width,
        "height": height,
        "sh_degree": sh_degree,
        "near": near,
        "far": far,
        "antialiased": antialiased,
    }
    out = _Rasterize.apply(
        means, quats, scales, opacities, colors, backgrounds, viewmats, means2d_offsets, settings
    )
    return Rasterization(*out)
