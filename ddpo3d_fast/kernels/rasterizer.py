"""The Gaussian rasterizer as a forward and a backward pass without autograd (rasterize.py has it with)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _backend
from ._backend import address, checked, integer, number
from ._entries import DEFAULT_MAX_ENTRIES, TileCapacity, TooManyEntries, entry_limit
from .rules import OURS, Given, Rules

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
    # means, quats, scales, opacities, colors, viewmats, intrinsics, backgrounds, means2d_offsets, given
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
    rules: Rules = OURS,
    given: Given | None = None,
    box_radii: Tensor | None = None,  # [C, N, 2] int32
) -> tuple[Rasterization, RasterizeState]:
    """`rasterize` without autograd: the views, and what `rasterize_backward` needs.

    Arguments, results and errors as there, and more:
        activated: False: scales are logarithms of the standard deviations and opacities logits, as an
            optimiser has them; the backward pass then gives the gradients of these. Infinite ones are their
            limits, with gradients of 0: a logit of inf is opaque, one of -inf transparent, a logarithm of
            -inf is no thickness. A logarithm of inf is no size: that Gaussian counts as absent.
        capacity: for CUDA loops that must not wait for the device. There it is the limit, and `max_entries`
            has no effect.
        rules: the conventions of another rasterizer (`ddpo3d_fast.compat` has them).
        given: numbers that take the place of projected ones; gradients end there.
        box_radii: where half the sides of the Gaussians' bounding boxes go, pixels, 0 off the image.

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
    given = Given() if given is None else given.checked(cameras, count, means)
    near, far = number("near", near), number("far", far)
    limit = DEFAULT_MAX_ENTRIES if max_entries is None else entry_limit("max_entries", max_entries)
    for name, flag in (("antialiased", antialiased), ("activated", activated)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: expected a bool, got {type(flag).__name__}")
    if not 0 < near < far:
        raise ValueError(f"near, far: expected 0 < near < far, got near {near} and far {far}")

    params = _backend.backend(means.device).RasterizeParams(
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
        **rules._asdict(),
        **given.addresses(),
        covariances2d=0,
        depths=0,
    )
    out = Rasterization(
        rgb=means.new_empty(cameras, height, width, 3),
        alpha=means.new_empty(cameras, height, width),
        depth=means.new_empty(cameras, height, width),
        radii=means.new_empty(cameras, count, dtype=torch.int32),
    )
    native = run_forward(params, out, box_radii, limit, capacity)
    inputs = (means, quats, scales, opacities, colors, viewmats, intrinsics, backgrounds, means2d_offsets)
    return out, RasterizeState(params, native, (*inputs, given), (cameras, height, width))


def run_forward(
    params: Any, out: Rasterization, box_radii: Tensor | None, limit: int, capacity: TileCapacity | None
) -> Any:
    """Fills `out`, and returns what the backward pass needs beside the params (`RasterizeState.native`)."""
    library = _backend.backend(out.rgb.device)
    if _backend.uses_cuda(out.rgb.device):
        return _forward_cuda(library, params, out, box_radii, limit, capacity)
    native = library.RasterizeState()
    addresses = {name: address(tensor) for name, tensor in out._asdict().items()}
    needed = library.rasterize_forward_cpu(
        params, native, **addresses, box_radii=address(box_radii), max_entries=limit
    )
    if needed > limit:
        raise TooManyEntries(needed, limit, library.rasterize_entries_bytes_cpu(needed))
    return native


def _forward_cuda(
    library: Any,
    params: Any,
    out: Rasterization,
    box_radii: Tensor | None,
    limit: int,
    capacity: TileCapacity | None,
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
            params,
            memory(None, 0),
            radii=address(out.radii),
            box_radii=address(box_radii),
            needed=address(needed),
            stream=stream,
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
    means2d_abs: Tensor | None = None,  # [C, N, 2]
) -> RasterizeGradients:
    """The vector-Jacobian product of the `rasterize_forward` that returned `state`; may be called repeatedly.

    Args:
        grad_rgb, grad_alpha, grad_depth: d(loss)/d(output), float32; None counts as zero.
        opacity_penalty: weight in the loss of the sum of all opacities, after activation, as in 3DGS-MCMC
            (arXiv 2404.09591).
        of_cameras: whether the gradients of viewmats and backgrounds are wanted.
        means2d_abs: where the sums over the pixels of the absolute value of what each gives to the gradient
            of means2d go; AbsGS (Ye et al. 2024) splits by them.

    Raises:
        TypeError, ValueError: a gradient's dtype, shape or device is not that of the output.
    """
    if not isinstance(state, RasterizeState):
        raise TypeError(f"state: expected what rasterize_forward returned, got {type(state).__name__}")
    means, quats, scales, opacities, colors, viewmats, _, backgrounds, *_ = state.inputs
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
    addresses |= {"means2d_abs": address(means2d_abs), "covariances2d": 0, "depths": 0}
    run_backward(state, grad_rgb, grad_alpha, grad_depth, opacity_penalty, addresses, means)
    return gradients


def run_backward(
    state: RasterizeState,
    grad_rgb: Tensor | None,
    grad_alpha: Tensor | None,
    grad_depth: Tensor | None,
    opacity_penalty: float,
    addresses: dict[str, int],
    like: Tensor,
) -> None:
    """Fills the gradients at `addresses`. `like` has the device that all are on."""
    shape = state.image_shape
    if grad_rgb is not None:
        grad_rgb = checked("grad_rgb", grad_rgb, (*shape, 3), like)
    if grad_alpha is not None:
        grad_alpha = checked("grad_alpha", grad_alpha, shape, like)
    if grad_depth is not None:
        grad_depth = checked("grad_depth", grad_depth, shape, like)
    upstream: dict[str, Any] = {
        "opacity_penalty": float(opacity_penalty),
        "grad_rgb": address(grad_rgb),
        "grad_alpha": address(grad_alpha),
        "grad_depth": address(grad_depth),
    }
    library = _backend.backend(like.device)
    if not isinstance(state.native, CudaPass):
        library.rasterize_backward_cpu(state.params, state.native, **upstream, **addresses)
        return
    scratch = torch.empty(state.native.scratch_bytes, dtype=torch.uint8, device=like.device)
    with _backend.on(like.device):
        library.rasterize_backward_cuda(
            state.params,
            state.native.memory,
            **upstream,
            **addresses,
            scratch=address(scratch),
            stream=_backend.stream(like.device),
        )
