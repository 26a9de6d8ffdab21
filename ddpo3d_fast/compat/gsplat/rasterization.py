"""gsplat's `rasterization`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._passes import FootprintPass, Pass, ScenePass
from .._projection import pinhole_means, symmetric, to_camera
from . import sparse
from .arguments import expect_mode, expect_shape, expect_supported
from .channels import run_channels, tape_channels
from .meta import Meta
from .projection import TRIANGLE, project, quat_scale_to_covar_preci
from .sh import camera_positions, evaluate
from .tiles import isect_offset_encode, isect_tiles
from .versions import VERSIONS, version


class _Colors(NamedTuple):
    values: Tensor  # [B, N, D], [B, C, N, D], or with `degree` [B, N, K, 3]
    degree: int | None  # the kernels evaluate spherical harmonics

    @property
    def of_camera(self) -> bool:
        return self.degree is None and self.values.dim() == 4


class _Unit(NamedTuple):
    """What goes through together: a scene before all of its cameras, or before one with colours of its own."""

    batch: int
    cameras: slice
    passes: list[Pass]


def _seen_colors(
    colors: Tensor | None,
    sh_degree: int | None,
    means: Tensor,  # [B, N, 3]
    viewmats: Tensor,  # [B, C, 4, 4]
    batch: torch.Size,
    in_kernels: bool,
) -> _Colors:
    size, count, cameras = *means.shape[:2], viewmats.shape[1]
    if sh_degree is None:
        colors = expect_shape("colors", colors, (*batch, count, None), (*batch, cameras, count, None))
        shared = colors.dim() == len(batch) + 2
        return _Colors(colors.reshape(size, *(() if shared else (cameras,)), count, colors.shape[-1]), None)
    if version().startswith("1.5"):
        shapes: tuple[tuple[int | None, ...], ...] = (
            (*batch, count, None, 3),
            (*batch, cameras, count, None, 3),
        )
    else:
        shapes = ((count, None, None),)
    colors = expect_shape("colors", colors, *shapes)
    if colors.shape[-2] < (sh_degree + 1) ** 2:
        raise ValueError(
            f"colors: expected at least {(sh_degree + 1) ** 2} coefficients for sh_degree {sh_degree}, "
            f"got {colors.shape[-2]}"
        )
    of_camera = version().startswith("1.5") and colors.dim() == len(batch) + 4
    lead = (size, cameras, count) if of_camera else (size, count)
    coefficients = colors.expand(*batch, *colors.shape) if len(batch) + 3 > colors.dim() else colors
    coefficients = coefficients.reshape(*lead, *colors.shape[-2:])
    if in_kernels and not of_camera and sh_degree <= 3 and colors.shape[-1] == 3:
        return _Colors(coefficients, sh_degree)
    offsets = means[:, None] - camera_positions(viewmats)[:, :, None]
    values = evaluate(sh_degree, offsets, coefficients if of_camera else coefficients[:, None])
    return _Colors((values + 0.5).clamp(min=0), None)


def rasterization(
    means: Tensor,  # [..., N, 3]
    quats: Tensor | None,  # [..., N, 4]
    scales: Tensor | None,  # [..., N, 3]
    opacities: Tensor,  # [..., N]
    colors: Tensor | None,  # [..., (C,) N, D] or [..., (C,) N, K, D]
    viewmats: Tensor,  # [..., C, 4, 4]
    Ks: Tensor,  # [..., C, 3, 3]
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int | None = None,
    backgrounds: Tensor | None = None,  # [..., C, D]
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,  # [..., N, 3, 3]
    with_ut: bool = False,
    with_eval3d: bool = False,
    *later: Any,
    **named: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """gsplat's function of this name, with the arguments of 1.5.3 and of 1.6.0 (`versions.use`).

    Arguments mean what they do there; all tensors are float32. `tile_size` and `segmented` only shape the
    lists in the dictionary, and `channel_chunk` nothing: three channels and the depth go through in a pass.
    Same inputs, same bits. `Ks` has no gradient.

    Returns:
        render_colors: [..., C, height, width, X].
        render_alphas: [..., C, height, width, 1].
        meta: gsplat's dictionary; conics, antialiased opacities and the tiles' lists are made when looked at.

    Raises:
        NotImplementedError: names the argument: distributed, another camera than a pinhole, with_ut,
            with_eval3d, distortion, rolling shutter, hit distances, absgrad with more than 3 channels.
        TypeError, ValueError: a shape, dtype or device does not fit.
    """
    expect_mode(render_mode, rasterize_mode)
    expect_supported(
        version(), later, named, distributed=(distributed, False), camera_model=(camera_model, "pinhole"),
        with_ut=(with_ut, False), with_eval3d=(with_eval3d, False),
    )  # fmt: skip
    batch = means.shape[:-2]
    count, cameras, size = means.shape[-2], viewmats.shape[-3], batch.numel()
    expect_shape("means", means, (*batch, count, 3))
    expect_shape("opacities", opacities, (*batch, count))
    expect_shape("viewmats", viewmats, (*batch, cameras, 4, 4))
    expect_shape("Ks", Ks, (*batch, cameras, 3, 3))
    if covars is None:
        expect_shape("quats", quats, (*batch, count, 4))
        expect_shape("scales", scales, (*batch, count, 3))
    else:
        expect_shape("covars", covars, (*batch, count, 3, 3))
    if sparse_grad and (not packed or batch):
        raise ValueError("sparse_grad: expected packed=True and no batch dimensions")
    rows = sparse.Rows()
    if sparse_grad:
        means = sparse.of_rows(means, rows)
        quats = None if quats is None else sparse.of_rows(quats, rows)
        scales = None if scales is None else sparse.of_rows(scales, rows)

    def flat(tensor: Tensor | None) -> Tensor:
        return torch.empty(size, 0) if tensor is None else tensor.reshape(size, *tensor.shape[len(batch) :])

    rules = VERSIONS[version()].rules._replace(eps2d=eps2d, radius_clip=radius_clip)
    antialiased, near = rasterize_mode == "antialiased", max(near_plane, 1e-30)
    of_means, of_quats, of_scales, of_opacities = flat(means), flat(quats), flat(scales), flat(opacities)
    of_viewmats, of_Ks = flat(viewmats), flat(Ks)
    points = to_camera(of_means, of_viewmats)  # [B, C, N, 3]
    means2d, depths = pinhole_means(points, of_Ks, near), points[..., 2]

    @cache
    def projected() -> tuple[Tensor, ...]:
        matrices = _covariances(of_quats, of_scales) if covars is None else _of_upper(flat(covars))
        return project(of_means, matrices, of_viewmats, of_Ks, width, height, eps2d, near)

    with_color = render_mode.startswith("RGB")
    if with_color:
        in_kernels = covars is None and not (viewmats.requires_grad and torch.is_grad_enabled())
        seen = _seen_colors(colors, sh_degree, of_means, of_viewmats, batch, in_kernels)
    else:
        seen = _Colors(of_means.new_zeros(size, count, 3), None)
    channels = seen.values.shape[-1]
    behind = flat(backgrounds) if backgrounds is not None and with_color else None
    if behind is not None:
        expect_shape("backgrounds", behind, (size, cameras, channels))
    if absgrad and channels > 3:
        raise NotImplementedError(f"absgrad: expected at most 3 channels, got {channels}")

    def run(b: int, of: slice) -> Callable[[Tensor, Tensor | None], Pass]:
        last = {"near": near, "far": far_plane, "antialiased": antialiased}
        if covars is not None:
            covariances = projected()[2][b, of]
            return lambda color, background: FootprintPass(
                means2d[b, of], covariances, depths[b, of], of_opacities[b], color, width, height, rules,
                backgrounds=background, **last,
            )  # fmt: skip
        return lambda color, background: ScenePass(
            of_means[b], of_quats[b], of_scales[b], of_opacities[b], color, of_viewmats[b, of], of_Ks[b, of],
            means2d[b, of].detach(), width, height, rules, sh_degree=seen.degree, backgrounds=background, **last,
        )  # fmt: skip

    units = []
    for b in range(size):
        for of in [slice(c, c + 1) for c in range(cameras)] if seen.of_camera else [slice(0, cameras)]:
            color = seen.values[b, of.start] if seen.of_camera else seen.values[b]
            background = None if behind is None else behind[b, of]
            start = run(b, of)
            passes = (
                run_channels(start, color, background) if seen.degree is None else [start(color, background)]
            )
            units.append(_Unit(b, of, passes))

    radii = torch.zeros(size, cameras, count, 2, dtype=torch.int32, device=means.device)
    for unit in units:
        radii[unit.batch, unit.cameras] = unit.passes[0].box_radii
    ids: tuple[Tensor, ...] | None = None
    if packed:
        ids = (radii > 0).all(-1).nonzero(as_tuple=True)
        shown = means2d[ids]
        taped = torch.zeros_like(means2d).index_put(ids, shown)
        if sparse_grad:
            rows.indices = ids[2].unique()
    else:
        shown = means2d.reshape(*batch, cameras, count, 2)
        taped = shown.reshape(means2d.shape)

    absolute = torch.zeros_like(means2d, requires_grad=False) if absgrad else None

    def tell(unit: _Unit) -> Callable[[Tensor], None]:
        def told(sums: Tensor) -> None:
            assert absolute is not None
            absolute[unit.batch, unit.cameras] = sums
            shown.absgrad = absolute[ids] if ids else absolute.reshape(shown.shape)  # type: ignore[attr-defined]

        return told

    images = [
        tape_channels(unit.passes, channels, taped[unit.batch, unit.cameras], tell(unit) if absgrad else None)
        for unit in units
    ]
    shape = (*batch, cameras, height, width)
    empty = [means.new_zeros(0, height, width, channels), means.new_zeros(0, height, width)]
    pictures, alphas, depth = (
        torch.cat(parts) if parts else blank
        for parts, blank in zip(
            zip(*images, strict=True) if images else ([], [], []), (*empty, empty[1]), strict=True
        )
    )
    render_alphas = alphas.reshape(*shape, 1)
    parts = [pictures.reshape(*shape, channels)] if with_color else []
    if render_mode != "RGB":
        distance = depth.reshape(*shape, 1)
        parts.append(distance / render_alphas.clamp(min=1e-10) if render_mode.endswith("ED") else distance)

    def listed(tensor: Tensor) -> Tensor:  # [B, C, N, ...] as the dictionary has it
        return tensor[ids] if ids else tensor.reshape(*batch, *tensor.shape[1:])

    def shown_opacities() -> Tensor:
        factor = projected()[4] if antialiased else 1.0
        return listed(of_opacities[:, None].expand(size, cameras, count) * factor)

    tile = 16 if tile_size is None else tile_size
    tile_width, tile_height = math.ceil(width / tile), math.ceil(height / tile)

    @cache
    def lists() -> tuple[Tensor, ...]:
        image_ids = ids[0] * cameras + ids[1] if ids else None
        found = isect_tiles(
            shown.detach(), listed(radii), listed(depths), tile, tile_width, tile_height, packed=packed,
            n_images=size * cameras, image_ids=image_ids,
        )  # fmt: skip
        offsets = isect_offset_encode(found[1], size * cameras, tile_width, tile_height)
        return (*found, offsets.reshape(*batch, cameras, tile_height, tile_width))

    ready = {
        "batch_ids": ids[0] if ids else None,
        "camera_ids": ids[1] if ids else None,
        "gaussian_ids": ids[2] if ids else None,
        "radii": listed(radii),
        "means2d": shown,
        "depths": listed(depths),
        "tile_width": tile_width,
        "tile_height": tile_height,
        "width": width,
        "height": height,
        "tile_size": tile,
        "n_batches": size,
        "n_cameras": cameras,
    }
    made = {
        "conics": lambda: listed(projected()[3]),
        "opacities": shown_opacities,
        "tiles_per_gauss": lambda: lists()[0],
        "isect_ids": lambda: lists()[1],
        "flatten_ids": lambda: lists()[2],
        "isect_offsets": lambda: lists()[3],
    }
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0], render_alphas, Meta(ready, made)


def _covariances(quats: Tensor, scales: Tensor) -> Tensor:
    covars, _ = quat_scale_to_covar_preci(quats, scales, True, False)
    assert covars is not None
    return covars


def _of_upper(covars: Tensor) -> Tensor:
    """As gsplat, which reads the upper triangle, so that the gradient is that triangle's."""
    return symmetric(covars.flatten(-2)[..., TRIANGLE])
