"""Which Gaussian meets which tile, in gsplat's lists, and blending from such lists."""

from __future__ import annotations

import torch
from torch import Tensor

from .._passes import FootprintPass, Frame
from .channels import run_channels, tape_channels
from .versions import VERSIONS, version

_DEPTHS = "ddpo3d_depths"  # what the lists were sorted by, on the tensor of their Gaussians


@torch.no_grad()
def isect_tiles(
    means2d: Tensor,  # [..., N, 2] or [nnz, 2]
    radii: Tensor,  # [..., N, 2] or [nnz, 2]
    depths: Tensor,  # [..., N] or [nnz]
    tile_size: int,
    tile_width: int,
    tile_height: int,
    sort: bool = True,
    segmented: bool = False,
    packed: bool = False,
    n_images: int | None = None,
    image_ids: Tensor | None = None,
    gaussian_ids: Tensor | None = None,
    conics: Tensor | None = None,
    opacities: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of a tile and a Gaussian whose bounding box touches it.

    `segmented`, `conics` and `opacities` do not change the images and are taken for their names only.

    Returns:
        tiles_per_gauss: int32, [..., N] or [nnz].
        isect_ids: int64 [n], image, tile and bits of the depth; sorted unless `sort` is False.
        flatten_ids: int32 [n], indices into the flattened [..., N] or [nnz].
    """
    center, radius = means2d / tile_size, radii / tile_size
    size = torch.tensor([tile_width, tile_height], device=means2d.device)
    first = torch.minimum((center - radius).floor().clamp(min=0).long(), size).reshape(-1, 2)
    last = torch.minimum((center + radius).ceil().clamp(min=0).long(), size).reshape(-1, 2)
    span = (last - first).clamp(min=0)
    counts = span.prod(-1) * (radii > 0).all(-1).reshape(-1)
    gaussian = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    within = torch.arange(len(gaussian), device=counts.device) - (counts.cumsum(0) - counts)[gaussian]
    row, column = within // span[gaussian, 0], within % span[gaussian, 0]
    tile = (first[gaussian, 1] + row) * tile_width + first[gaussian, 0] + column
    if packed:
        assert image_ids is not None, "packed: image_ids is required"
        image = image_ids.long()[gaussian]
    else:
        image = gaussian // means2d.shape[-2]
    bits = (tile_width * tile_height).bit_length()
    depth_bits = depths.reshape(-1).float().view(torch.int32).long()[gaussian] & 0xFFFFFFFF
    ids = (image << (32 + bits)) | (tile << 32) | depth_bits
    if sort:
        ids, order = ids.sort(stable=True)
        gaussian = gaussian[order]
    flatten_ids = gaussian.int()
    setattr(flatten_ids, _DEPTHS, depths.detach())
    return counts.reshape(depths.shape).int(), ids, flatten_ids


@torch.no_grad()
def isect_offset_encode(isect_ids: Tensor, n_images: int, tile_width: int, tile_height: int) -> Tensor:
    """Where each tile's list begins: int32 [n_images, tile_height, tile_width]."""
    bits = (tile_width * tile_height).bit_length()
    tile = (isect_ids >> (32 + bits)) * tile_width * tile_height + (isect_ids >> 32 & ((1 << bits) - 1))
    counts = torch.bincount(tile, minlength=n_images * tile_width * tile_height)
    return (counts.cumsum(0) - counts).int().reshape(n_images, tile_height, tile_width)


def rasterize_to_pixels(
    means2d: Tensor,  # [..., N, 2] or [nnz, 2]
    conics: Tensor,  # [..., N, 3] or [nnz, 3]
    colors: Tensor,  # [..., N, D] or [nnz, D]
    opacities: Tensor,  # [..., N] or [nnz]
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Tensor,  # [..., tile_height, tile_width]
    flatten_ids: Tensor,  # [n]
    backgrounds: Tensor | None = None,  # [..., D]
    masks: Tensor | None = None,
    packed: bool = False,
    absgrad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Blends Gaussians that lie on the image: [..., H, W, D] and [..., H, W, 1].

    Differentiable to means2d, conics, colors, opacities and backgrounds. Who is drawn comes from flatten_ids,
    which must be this `isect_tiles`' own, since it carries the depths that order them.

    Raises: NotImplementedError for `masks`, for other lists, and for `absgrad` with more than 3 channels.
    """
    if masks is not None:
        raise NotImplementedError("masks: tiles cannot be left out")
    depths = getattr(flatten_ids, _DEPTHS, None)
    if depths is None:
        raise NotImplementedError(
            "flatten_ids: expected what isect_tiles of ddpo3d_fast.compat.gsplat returned"
        )
    channels = colors.shape[-1]
    if absgrad and channels > 3:
        raise NotImplementedError(f"absgrad: expected at most 3 channels, got {channels}")
    image_dims = isect_offsets.shape[:-2]
    images = image_dims.numel()
    drawn = torch.zeros(opacities.numel(), dtype=torch.bool, device=means2d.device)
    drawn[flatten_ids.long()] = True
    if packed:
        starts = isect_offsets.reshape(images, -1)[:, 0].contiguous().long()
        entries = torch.arange(len(flatten_ids), device=starts.device)
        image_of = torch.zeros(opacities.numel(), dtype=torch.long, device=means2d.device)
        image_of[flatten_ids.long()] = torch.searchsorted(starts, entries, right=True) - 1
        rows = [(drawn & (image_of == i)).nonzero()[:, 0] for i in range(images)]
    else:
        rows = [part.nonzero()[:, 0] + i * len(part) for i, part in enumerate(drawn.chunk(max(images, 1)))]

    flat = (
        means2d.reshape(-1, 2),
        conics.reshape(-1, 3),
        colors.reshape(-1, channels),
        opacities.reshape(-1),
    )
    absolute = torch.zeros_like(flat[0]) if absgrad else None
    rules = VERSIONS[version()].rules._replace(eps2d=0.0)
    frame = Frame(image_width, image_height, 1e-30, 1e30, False, rules)
    pictures, alphas = [], []
    for i, index in enumerate(rows):
        of_means, of_conics, of_colors, of_opacities = (tensor[index] for tensor in flat)
        of_depths = depths.reshape(-1)[index]
        a, b, c = of_conics.unbind(-1)
        covariances = torch.stack([c, -b, a], -1) / (a * c - b * b)[:, None]

        def tell(sums: Tensor, index: Tensor = index) -> None:
            assert absolute is not None
            absolute[index] = sums[0]
            means2d.absgrad = absolute.reshape(means2d.shape)  # type: ignore[attr-defined]

        def run(
            chunk: Tensor,
            behind: Tensor | None,
            m: Tensor = of_means,
            s: Tensor = covariances,
            z: Tensor = of_depths,
            o: Tensor = of_opacities,
        ) -> FootprintPass:
            return FootprintPass(m[None], s[None], z[None], o, chunk, frame, backgrounds=behind)

        behind = None if backgrounds is None else backgrounds.reshape(images, channels)[i : i + 1]
        passes = run_channels(run, of_colors, behind)
        picture, alpha, _ = tape_channels(passes, channels, of_means[None], tell if absgrad else None)
        pictures.append(picture[0])
        alphas.append(alpha[0])
    shape = (*image_dims, image_height, image_width)
    return torch.stack(pictures).reshape(*shape, channels), torch.stack(alphas).reshape(*shape, 1)
