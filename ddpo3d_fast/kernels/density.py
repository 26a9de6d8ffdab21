"""Density of Gaussians on a grid, from which an isosurface can be taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _backend
from ._backend import address, checked, integer, number
from ._launch import launch

_MOST_POINTS = 2**31  # of a grid: 8 GiB


def gaussian_density(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    origin: Sequence[float],
    cell: float,
    size: Sequence[int],
    dilation: float = 0.0,
) -> Tensor:
    """Sum of opacity exp(-1/2 d^T Sigma^-1 d) over all Gaussians, at the points of a grid (DreamGaussian,
    arXiv 2309.16653, eq. 4). Each counts where it is 1/255 or more, as for `rasterize`, so a point costs what
    is near it. No gradients.

    The same to the bit for any number of threads. A Gaussian with a number that is not finite, a quaternion
    of zero or no thickness, where `dilation` gives it none, counts nowhere.

    Args:
        means: [N, 3] float32, world units.
        quats: [N, 4] float32 w, x, y, z, of any length but 0.
        scales: [N, 3] float32 standard deviations, world units.
        opacities: [N] float32.
        origin: x, y, z of the first point, world units.
        cell: distance of neighbouring points, world units, above 0.
        size: number of points along x, y and z, each 0 or more, 2^31 in all at most.
        dilation: variance added along every axis, world units squared, 0 or more: so what is thinner than a
            cell is not missed (Mip-Splatting's 3D smoothing filter, Yu et al. 2024, eq. 9, without its
            factor).

    Returns:
        [size z, size y, size x] float32 on the tensors' device; point [k, j, i] is at
        origin + cell (i, j, k).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range.
    """
    means = checked("means", means, ("N", 3)).detach()
    count = means.shape[0]
    quats = checked("quats", quats, (count, 4), means).detach()
    scales = checked("scales", scales, (count, 3), means).detach()
    opacities = checked("opacities", opacities, (count,), means).detach()
    first = [number("origin", value) for value in _three("origin", origin)]
    points = [integer("size", value, "three ints") for value in _three("size", size)]
    cell, dilation = number("cell", cell), number("dilation", dilation)
    if not all(math.isfinite(value) for value in first):
        raise ValueError(f"origin: expected three finite numbers, got {first}")
    if not 0.0 < cell < math.inf:
        raise ValueError(f"cell: expected a positive number, got {cell}")
    if not 0.0 <= dilation < math.inf:
        raise ValueError(f"dilation: expected 0 or more, got {dilation}")
    if min(points) < 0 or math.prod(points) > _MOST_POINTS:
        raise ValueError(f"size: expected three numbers of 0 or more, 2^31 points at most, got {points}")
    density = torch.empty(points[::-1], dtype=torch.float32, device=means.device)
    if not density.numel():
        return density
    cuda = {}
    if _backend.uses_cuda(means.device):
        room = _backend.backend(means.device).density_workspace_bytes(count)
        workspace = torch.empty(room, dtype=torch.uint8, device=means.device)
        cuda["workspace"] = address(workspace)
    launch(
        means.device,
        "gaussian_density",
        cuda,
        num_gaussians=count,
        means=address(means),
        quats=address(quats),
        scales=address(scales),
        opacities=address(opacities),
        dilation=dilation,
        origin=first,
        cell=cell,
        size=points,
        density=address(density),
    )
    return density


def _three(name: str, values: object) -> Sequence[object]:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 3:
        got = f"{len(values)}" if isinstance(values, Sequence) else type(values).__name__
        raise TypeError(f"{name}: expected three numbers, got {got}")
    return values
