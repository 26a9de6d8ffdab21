"""Where Gaussians are solid: a function on a grid that is positive inside.

Two things make it. The density (DreamGaussian, arXiv 2309.16653, section 3.2) says how much there is at a
point, and what of it counts as solid is found out by comparing: the isovalue is the one whose surface has the
silhouettes that the Gaussians have. The visual hull (Laurentini 1994) of these silhouettes takes away what a
low isovalue has too much.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.kernels import gaussian_density, rasterize_triangles
from ddpo3d_fast.scene import Cameras, Gaussians, look_at_origin

HULL_VIEWS, HULL_SIZE = 32, 192
HULL_ALPHA = 0.35
"""Of a view, below which nothing is solid: less than 1/2, since of 32 views one always shows a little less"""
ISOVALUES = tuple(float(value) for value in np.geomspace(0.15, 1.6, 11))  # of the density, to choose from
AS_GOOD = 0.004  # so much less of the best overlap is as good, and of these the thinnest is taken
FAINTEST = 0.1  # density below which nothing is solid
EXTENT = 1.2  # the grid ends here along every axis, the object's ball having radius 1
PAD = 3  # points around the object
SMALLEST = 0.01  # of the largest piece's points: pieces below are specks


class Field(NamedTuple):
    """Positive inside, negative outside, 0 on the surface."""

    values: np.ndarray  # [D, H, W] float32 in [-1, 1]
    origin: np.ndarray  # [3] float64 x, y, z of the first point
    cell: float  # between neighbours

    def at(self, points: np.ndarray) -> np.ndarray:
        """[N, 3] x, y, z in the world of places [N, 3] in the grid, z, y, x in points."""
        return self.origin + self.cell * points[:, ::-1].astype(np.float64)


class Near(NamedTuple):
    """The N points of a grid that may be solid."""

    places: Tensor  # [N, 3] z, y, x
    density: Tensor  # [N]
    alpha: Tensor  # [N] least alpha that a view has over it


def solid_field(gaussians: Gaussians, resolution: int) -> Field:
    """The field of Gaussians in the unit ball, on the CPU; `resolution` points along its longest side."""
    density, origin, cell = density_grid(gaussians, resolution)
    cameras = sphere_cameras(HULL_VIEWS)
    alpha = gaussians.render(cameras, HULL_SIZE, HULL_SIZE).alpha
    index = (density > FAINTEST).nonzero()
    points = origin + cell * index.flip(1).double()
    near = Near(index, density[tuple(index.T)], least_alpha(points.float(), cameras, alpha))
    coarse = max(1, round(resolution / 96))
    isovalue = best_isovalue(
        near, density.shape, Field(np.empty(0), origin.numpy(), cell), cameras, alpha, coarse
    )
    values = without_specks(field_values(near, density.shape, isovalue))
    return Field(values, origin.numpy(), cell)


def density_grid(gaussians: Gaussians, resolution: int) -> tuple[Tensor, Tensor, float]:
    """Density [D, H, W] around the Gaussians, the grid's first point [3] float64 and its cell."""
    seen = gaussians.activated()
    reach = 2 * seen.scales.amax(1, keepdim=True)
    low = (seen.means - reach).amin(0).clamp(min=-EXTENT).double()
    high = (seen.means + reach).amax(0).clamp(max=EXTENT).double()
    cell = max(float((high - low).amax()), 1e-3) / (resolution - 1 - 2 * PAD)
    origin = low - PAD * cell
    size = [math.ceil(float(length) / cell) + 1 + 2 * PAD for length in high - low]
    # Half a cell of blur, so that what is thinner than a cell is not missed.
    return gaussian_density(*seen[:4], origin.tolist(), cell, size, dilation=(0.5 * cell) ** 2), origin, cell


def sphere_cameras(count: int) -> Cameras:
    """`count` cameras around the object, evenly on a sphere along a spiral (Fibonacci's)."""
    number = torch.arange(count, dtype=torch.float64)
    azimuth = 2 * math.pi * number * (math.sqrt(5) - 1) / 2
    return look_at_origin(azimuth, torch.asin(1 - 2 * (number + 0.5) / count))


def least_alpha(points: Tensor, cameras: Cameras, alpha: Tensor) -> Tensor:
    """[N] the least alpha [C, S, S] that a camera has over each of the points [N, 3]."""
    size, least = alpha.shape[-1], points.new_ones(len(points))
    for view, k, picture in zip(cameras.viewmats, cameras.intrinsics(size, size), alpha, strict=True):
        seen = points @ (k @ view[:3, :3]).T + k @ view[:3, 3]
        at = seen[:, :2] / seen[:, 2:].clamp_min(1e-6) / size * 2 - 1
        here = torch.nn.functional.grid_sample(picture[None, None], at[None, None], align_corners=False)
        least = torch.minimum(least, here[0, 0, 0])
    return least


def field_values(near: Near, shape: tuple[int, ...], isovalue: float) -> np.ndarray:
    """[D, H, W] float32: inside both the density's surface and the hull."""
    inside = torch.minimum(near.density / isovalue - 1, near.alpha / HULL_ALPHA - 1).clamp(-1, 1)
    values = torch.full(shape, -1.0)
    values[tuple(near.places.T)] = inside
    return values.numpy()


def best_isovalue(
    near: Near, shape: tuple[int, ...], grid: Field, cameras: Cameras, alpha: Tensor, coarse: int
) -> float:
    """Of ISOVALUES the highest whose surface, of every `coarse`-th point, overlaps the Gaussians' silhouettes
    about as well as the best one's."""
    from skimage.measure import marching_cubes

    chosen, size = cameras[::2], alpha.shape[-1] // 2
    truth = torch.nn.functional.avg_pool2d(alpha[::2, None], 2)[:, 0] > 0.5
    overlaps = []
    for isovalue in ISOVALUES:
        values = field_values(near, shape, isovalue)[::coarse, ::coarse, ::coarse]
        if not (values > 0).any():
            overlaps.append(0.0)
            continue
        corners, triangles = marching_cubes(values, 0.0)[:2]
        hits = rasterize_triangles(
            torch.from_numpy(grid.at(corners * coarse).astype(np.float32)),
            torch.from_numpy(triangles.astype(np.int32)),
            chosen.viewmats,
            chosen.intrinsics(size, size),
            size,
            size,
        )
        covered = hits.triangles >= 0
        overlaps.append(float((covered & truth).sum() / (covered | truth).sum().clamp_min(1)))
    good = [
        value
        for value, overlap in zip(ISOVALUES, overlaps, strict=True)
        if overlap >= max(overlaps) - AS_GOOD
    ]
    return max(good)


def without_specks(values: np.ndarray) -> np.ndarray:
    """The field with no cavities that nobody can see, and without pieces that are specks."""
    from scipy import ndimage

    solid = values > 0
    filled = ndimage.binary_fill_holes(solid)
    values = np.where(filled & ~solid, np.float32(1.0), values)
    pieces, count = ndimage.label(filled)
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        values = np.where((sizes < SMALLEST * sizes.max())[pieces] & filled, np.float32(-1.0), values)
    return values
