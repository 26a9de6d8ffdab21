"""gsplat's `rasterization`."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .._passes import Frame, Tell
from . import sparse
from .arguments import expect_mode, expect_shape, expect_supported
from .channels import tape_channels
from .colors import Colors, seen_colors
from .meta import Meta
from .scene import Scene, Unit
from .tiles import isect_offset_encode, isect_tiles
from .versions import VERSIONS, version


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

    def flat(tensor: Tensor) -> Tensor:
        return tensor.reshape(size, *tensor.shape[len(batch) :])

    rules = VERSIONS[version()].rules._replace(eps2d=eps2d, radius_clip=radius_clip)
    frame = Frame(width, height, max(near_plane, 1e-30), far_plane, rasterize_mode == "antialiased", rules)
    scene = Scene(
        flat(means),
        None if quats is None else flat(quats),
        None if scales is None else flat(scales),
        flat(opacities),
        None if covars is None else flat(covars),
        flat(viewmats),
        flat(Ks),
        frame,
    )
    colored = render_mode.startswith("RGB")
    if colored:
        in_kernels = covars is None and not (viewmats.requires_grad and torch.is_grad_enabled())
        seen = seen_colors(colors, sh_degree, scene.means, scene.viewmats, batch, in_kernels)
    else:
        seen = Colors(scene.means.new_zeros(size, count, 3), None)
    channels = seen.values.shape[-1]
    if absgrad and channels > 3:
        raise NotImplementedError(f"absgrad: expected at most 3 channels, got {channels}")
    behind = None
    if backgrounds is not None and colored:
        behind = flat(expect_shape("backgrounds", backgrounds, (*batch, cameras, channels)))

    units = scene.run(seen, behind)
    radii = scene.box_radii(units)
    ids: tuple[Tensor, ...] | None = None
    if packed:
        ids = (radii > 0).all(-1).nonzero(as_tuple=True)
        shown = scene.means2d[ids]
        taped = torch.zeros_like(scene.means2d).index_put(ids, shown)
        if sparse_grad:
            rows.indices = ids[2].unique()
    else:
        shown = scene.means2d.reshape(*batch, cameras, count, 2)
        taped = shown.reshape(scene.means2d.shape)

    def listed(tensor: Tensor) -> Tensor:  # [B, C, N, ...] as the dictionary has it
        return tensor[ids] if ids else tensor.reshape(*batch, *tensor.shape[1:])

    absolute = torch.zeros_like(scene.means2d, requires_grad=False) if absgrad else None

    def tell(unit: Unit) -> Tell | None:
        if absolute is None:
            return None

        def told(sums: Tensor) -> None:
            absolute[unit.batch, unit.cameras] = sums
            shown.absgrad = listed(absolute)  # type: ignore[attr-defined]

        return told

    images = [
        tape_channels(unit.passes, channels, taped[unit.batch, unit.cameras], tell(unit)) for unit in units
    ]
    shape = (*batch, cameras, height, width)
    if len(images) != 1:
        empty = [means.new_zeros(0, height, width, channels), *2 * [means.new_zeros(0, height, width)]]
        images = [tuple(torch.cat(parts) for parts in zip(empty, *images, strict=True))]  # type: ignore[list-item]
    pictures, alphas, depths = images[0]
    render_alphas = alphas.reshape(*shape, 1)
    parts = [pictures.reshape(*shape, channels)] if colored else []
    if render_mode != "RGB":
        depth = depths.reshape(*shape, 1)
        parts.append(depth / render_alphas.clamp(min=1e-10) if render_mode.endswith("ED") else depth)

    def shown_opacities() -> Tensor:
        factors = scene.projected[4] if frame.antialiased else 1.0
        return listed(scene.opacities[:, None].expand(size, cameras, count) * factors)

    tile = 16 if tile_size is None else tile_size
    tile_width, tile_height = math.ceil(width / tile), math.ceil(height / tile)

    @cache
    def lists() -> tuple[Tensor, ...]:
        image_ids = ids[0] * cameras + ids[1] if ids else None
        found = isect_tiles(
            shown.detach(), listed(radii), listed(scene.depths), tile, tile_width, tile_height, packed=packed,
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
        "depths": listed(scene.depths),
        "tile_width": tile_width,
        "tile_height": tile_height,
        "width": width,
        "height": height,
        "tile_size": tile,
        "n_batches": size,
        "n_cameras": cameras,
    }
    made = {
        "conics": lambda: listed(scene.projected[3]),
        "opacities": shown_opacities,
        "tiles_per_gauss": lambda: lists()[0],
        "isect_ids": lambda: lists()[1],
        "flatten_ids": lambda: lists()[2],
        "isect_offsets": lambda: lists()[3],
    }
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1), render_alphas, Meta(ready, made)
