"""The Gaussian rasterizer as a torch function, and as a forward and a backward without autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _backend
from ._backend import address, checked, integer, number
from ._entries import DEFAULT_MAX_ENTRIES, TileCapacity, TooManyEntries, entry_limit

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
    backgrounds: Tensor | None  # [C, 3]; None if no backgrounds were given, or not wanted
    viewmats: Tensor | None  # [C, 4, 4], the last row zero; None if not wanted
    means2d: Tensor  # [C, N, 2] with respect to the projected means, in pixels


class CudaPass(NamedTuple):
    """The device memory of one forward pass on CUDA."""

    memory: Any  # RasterizeMemory of the extension: addresses in the tensors below
    state: Tensor
    entries: Tensor
    scratch_bytes: int  # of the backward pass


class RasterizeState(NamedTuple):
    """What `rasterize_backward` needs of a forward pass. The tensors must not be changed in between."""

    params: Any  # RasterizeParams of the extension: addresses of the tensors below
    native: Any  # CPU: RasterizeState of the extension, tile lists and per-pixel results; CUDA: CudaPass
    # means, quats, scales, opacities, colors, viewmats, intrinsics, backgrounds, means2d_offsets
    inputs: tuple[Any, ...]
    image_shape: tuple[int, int, int]  # C, H, W

    @property
    def overflow(self) -> Tensor | None:
        """[1] int32 on the device, not zero if a `TileCapacity` was too small; None on the CPU."""
        return self.native.state[:4].view(torch.int32) if isinstance(self.native, CudaPass) else None


def _size(name: str, value: object) -> int:
    size = integer(name, value)
    if not 0 <= size <= MAX_SIDE:
        raise ValueError(f"{name}: expected 0 to {MAX_SIDE} pixels, got {size}")
    return size


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
    activated: bool = True,
    max_entries: int | None = None,
    capacity: TileCapacity | None = None,
) -> tuple[Rasterization, RasterizeState]:
    """`rasterize` without autograd: the views, and what `rasterize_backward` needs.

    Arguments, results and errors as there, and two more:
        activated: False: scales are logarithms of the standard deviations and opacities logits, as an
            optimiser has them; the backward pass then gives the gradients of these. Infinite ones are their
            limits, with gradients of 0: a logit of inf is opaque, one of -inf transparent, a logarithm of
            -inf is no thickness. A logarithm of inf is no size: that Gaussian counts as absent.
        capacity: for CUDA loops that must not wait for the device. There it is the limit, and `max_entries`
            has no effect.

    A Gaussian of opacity 0 (a logit below -104) is left out before anything else of it is read: rows that
    only fill up the arrays, so that their size stays, cost next to nothing and have gradients of exactly 0,
    that of the penalty too.
    """
    means = checked("means", means, ("N", 3))
    count = means.shape[0]
    quats = checked("quats", quats, (count, 4), means)
    scales = checked("scales", scales, (count, 3), means)
    opacities = checked("opacities", opacities, (count,), means)
    if sh_degree is None:
        colors = checked("colors", colors, (count, 3), means)
    else:
        sh_degree = integer("sh_degree", sh_degree, "None or an int")
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
    cuda = _backend.uses_cuda(means.device)
    # On CUDA looking at the values would be a wait; there a focal length of zero or NaN draws nothing.
    if not cuda and cameras and not bool((intrinsics.detach().diagonal(dim1=1, dim2=2)[:, :2] > 0).all()):
        raise ValueError("intrinsics: expected positive focal lengths at [:, 0, 0] and [:, 1, 1]")
    width, height = _size("width", width), _size("height", height)
    if backgrounds is not None:
        backgrounds = checked("backgrounds", backgrounds, (cameras, 3), means)
    if means2d_offsets is not None:
        means2d_offsets = checked("means2d_offsets", means2d_offsets, (cameras, count, 2), means)
    near, far = number("near", near), number("far", far)
    limit = DEFAULT_MAX_ENTRIES if max_entries is None else entry_limit("max_entries", max_entries)
    for name, flag in (("antialiased", antialiased), ("activated", activated)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: expected a bool, got {type(flag).__name__}")
    if not 0 < near < far:
        raise ValueError(f"near, far: expected 0 < near < far, got near {near} and far {far}")

    library = _backend.backend(means.device)
    params = library.RasterizeParams(
        num_gaussians=count,
        num_cameras=cameras,
        width=width,
        height=height,
        sh_degree=-1 if sh_degree is None else sh_degree,
        activated=activated,
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
    out = Rasterization(
        rgb=means.new_empty(cameras, height, width, 3),
        alpha=means.new_empty(cameras, height, width),
        depth=means.new_empty(cameras, height, width),
        radii=means.new_empty(cameras, count, dtype=torch.int32),
    )
    native: Any
    if cuda:
        native = _forward_cuda(library, params, out, limit, capacity)
    else:
        native = library.RasterizeState()
        addresses = {name: address(tensor) for name, tensor in out._asdict().items()}
        needed = library.rasterize_forward_cpu(params, native, **addresses, max_entries=limit)
        if needed > limit:
            raise TooManyEntries(needed, limit, library.rasterize_entries_bytes_cpu(needed))
    inputs = (means, quats, scales, opacities, colors, viewmats, intrinsics, backgrounds, means2d_offsets)
    return out, RasterizeState(params, native, inputs, (cameras, height, width))


def _forward_cuda(
    library: Any, params: Any, out: Rasterization, limit: int, capacity: TileCapacity | None
) -> CudaPass:
    device = out.rgb.device
    if capacity is None:  # waited for below, so it may die with this call
        needed = torch.zeros((), dtype=torch.int64, pin_memory=device.type == "cuda")
    else:
        needed = capacity.reported_by(device)
    state = torch.empty(library.rasterize_state_bytes_cuda(params), dtype=torch.uint8, device=device)

    def memory(entries: Tensor | None, max_entries: int) -> Any:
        return library.RasterizeMemory(
            state=address(state), entries=address(entries), max_entries=max_entries
        )

    with _backend.on(device):
        stream = _backend.stream(device)
        library.rasterize_project_cuda(
            params, memory(None, 0), radii=address(out.radii), needed=address(needed), stream=stream
        )
        if capacity is None:
            _backend.wait(device)
            max_entries = int(needed)
            if max_entries > limit:
                size = library.rasterize_entries_bytes_cuda(max_entries)
                raise TooManyEntries(max_entries, limit, size)
        else:
            max_entries = capacity.entries
        entry_bytes = library.rasterize_entries_bytes_cuda(max_entries)
        entries = torch.empty(entry_bytes, dtype=torch.uint8, device=device)
        blended = memory(entries, max_entries)
        images = {name: address(getattr(out, name)) for name in ("rgb", "alpha", "depth")}
        library.rasterize_blend_cuda(params, blended, **images, stream=stream)
    scratch_bytes = library.rasterize_scratch_bytes_cuda(params, max_entries)
    return CudaPass(blended, state, entries, scratch_bytes)


def rasterize_backward(
    state: RasterizeState,
    grad_rgb: Tensor | None,  # [C, H, W, 3]
    grad_alpha: Tensor | None = None,  # [C, H, W]
    grad_depth: Tensor | None = None,  # [C, H, W]
    *,
    opacity_penalty: float = 0.0,
    of_cameras: bool = True,
) -> RasterizeGradients:
    """The vector-Jacobian product of the `rasterize_forward` that returned `state`; may be called repeatedly.

    Args:
        grad_rgb, grad_alpha, grad_depth: d(loss)/d(output), float32; None counts as zero.
        opacity_penalty: weight in the loss of the sum of all opacities, after activation, as in 3DGS-MCMC
            (arXiv 2404.09591).
        of_cameras: whether the gradients of viewmats and backgrounds are wanted.

    Raises:
        TypeError, ValueError: a gradient's dtype, shape or device is not that of the output.
    """
    if not isinstance(state, RasterizeState):
        raise TypeError(f"state: expected what rasterize_forward returned, got {type(state).__name__}")
    shape = state.image_shape
    means, quats, scales, opacities, colors, viewmats, _, backgrounds, _ = state.inputs
    if grad_rgb is not None:
        grad_rgb = checked("grad_rgb", grad_rgb, (*shape, 3), means)
    if grad_alpha is not None:
        grad_alpha = checked("grad_alpha", grad_alpha, shape, means)
    if grad_depth is not None:
        grad_depth = checked("grad_depth", grad_depth, shape, means)

    gradients = RasterizeGradients(
        means=torch.empty_like(means),
        quats=torch.empty_like(quats),
        scales=torch.empty_like(scales),
        opacities=torch.empty_like(opacities),
        colors=torch.empty_like(colors),
        backgrounds=torch.empty_like(backgrounds) if of_cameras and backgrounds is not None else None,
        viewmats=torch.empty_like(viewmats) if of_cameras else None,
        means2d=means.new_empty(viewmats.shape[0], means.shape[0], 2),
    )
    addresses = {name: address(tensor) for name, tensor in gradients._asdict().items()}
    upstream: dict[str, Any] = {
        "opacity_penalty": float(opacity_penalty),
        "grad_rgb": address(grad_rgb),
        "grad_alpha": address(grad_alpha),
        "grad_depth": address(grad_depth),
    }
    library = _backend.backend(means.device)
    if not isinstance(state.native, CudaPass):
        library.rasterize_backward_cpu(state.params, state.native, **upstream, **addresses)
        return gradients
    scratch = torch.empty(state.native.scratch_bytes, dtype=torch.uint8, device=means.device)
    with _backend.on(means.device):
        library.rasterize_backward_cuda(
            state.params,
            state.native.memory,
            **upstream,
            **addresses,
            scratch=address(scratch),
            stream=_backend.stream(means.device),
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
