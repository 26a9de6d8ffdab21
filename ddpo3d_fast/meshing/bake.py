"""The texture of a surface, from pictures of the Gaussians that it was made of.

Every texel asks all views that see it and means what they show, weighed by how squarely they look at it. What
no view sees takes the colour of what lies nearest. Views are rendered without a background and divided by
their alpha, and a texel looks away from where an object ends or stands before another, so that no colour of
what is behind gets into it. Texels between charts repeat the nearest one's colour, which leaves no seam.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d, normalize

from ddpo3d_fast.kernels import rasterize_triangles
from ddpo3d_fast.meshing.field import sphere_cameras
from ddpo3d_fast.meshing.surface import Surface
from ddpo3d_fast.scene import Gaussians

VIEWS, SIZE = 32, 512
SQUARELY = 6.0  # power of the cosine that a view is weighed by
GRAZING = 0.15  # cosine below which a view says nothing
COVERED = (0.6, 0.95)  # alpha of a view where it begins to count, and where it counts fully
TOLERANCE = 0.02  # depth by which a texel may lie behind what a view shows, world units
AROUND = 3  # pixels around a texel's that must not show anything nearer: a side


class Texels(NamedTuple):
    """The M texels that a surface has a place for."""

    places: Tensor  # [M] in a texture, row by row
    positions: Tensor  # [M, 3]
    normals: Tensor  # [M, 3]


def bake(gaussians: Gaussians, surface: Surface, size: int) -> Tensor:
    """[size, size, 3] float32 in [0, 1], the colours of the Gaussians on the surface."""
    texels = texels_of(surface, size)
    colors, known = seen_colors(gaussians, surface, texels)
    return filled(texels, colors, known, size)


def texels_of(surface: Surface, size: int) -> Texels:
    """Where on the surface the texels are: the triangles drawn on the texture itself."""
    uvs, triangles = torch.from_numpy(surface.uvs), torch.from_numpy(surface.triangles)
    flat = torch.cat([uvs, torch.ones(len(uvs), 1)], 1)
    camera = torch.eye(4)[None], torch.diag(torch.tensor([size, size, 1.0]))[None]
    hits = rasterize_triangles(flat, triangles, *camera, size, size)
    index = (hits.triangles.view(-1) >= 0).nonzero()[:, 0]
    corners = triangles[hits.triangles.view(-1)[index].long()].long()
    weights = hits.barycentrics.view(-1, 3)[index, :, None]
    positions = (torch.from_numpy(surface.vertices)[corners] * weights).sum(1)
    normals = normalize((torch.from_numpy(surface.normals)[corners] * weights).sum(1), dim=1)
    return Texels(index, positions, normals)


def seen_colors(gaussians: Gaussians, surface: Surface, texels: Texels) -> tuple[Tensor, Tensor]:
    """[M, 3] what views show at the texels, and [M] whether any does."""
    cameras = sphere_cameras(VIEWS)
    eyes = -(cameras.viewmats[:, :3, :3].mT @ cameras.viewmats[:, :3, 3:])[..., 0]
    total, weights = torch.zeros(len(texels.places), 3), torch.zeros(len(texels.places), 1)
    triangles, vertices = torch.from_numpy(surface.triangles), torch.from_numpy(surface.vertices)
    for number, eye in enumerate(eyes):
        camera = cameras[number : number + 1]
        k = camera.intrinsics(SIZE, SIZE)
        depth = rasterize_triangles(vertices, triangles, camera.viewmats, k, SIZE, SIZE).depth
        nearest = -max_pool2d(-torch.where(depth > 0, depth, torch.inf), AROUND, 1, AROUND // 2)
        view = gaussians.render(camera, SIZE, SIZE)
        facing = (normalize(eye - texels.positions, dim=1) * texels.normals).sum(1)
        rows = (facing > GRAZING).nonzero()[:, 0]
        seen = texels.positions[rows] @ camera.viewmats[0, :3, :3].T + camera.viewmats[0, :3, 3]
        at = (seen[:, :2] / seen[:, 2:] * k[0, 0, 0] / SIZE * 2)[None, None]
        shown = torch.cat([view.rgb[0], view.alpha[0, ..., None]], 1 + 1).permute(2, 0, 1)[None]
        shown = grid_sample(shown, at, align_corners=False)[0, :, 0].T  # over black
        before = grid_sample(nearest[:, None], at, mode="nearest", align_corners=False)[0, 0, 0]
        low, high = COVERED
        weight = ((shown[:, 3] - low) / (high - low)).clamp(0, 1) * facing[rows] ** SQUARELY
        weight = torch.where(seen[:, 2] <= before + TOLERANCE / facing[rows], weight, 0.0)[:, None]
        total[rows] += weight * (shown[:, :3] / shown[:, 3:].clamp_min(1e-3)).clamp(0, 1)
        weights[rows] += weight
    known = weights[:, 0] > 1e-4
    return total / weights.clamp_min(1e-4), known


def filled(texels: Texels, colors: Tensor, known: Tensor, size: int) -> Tensor:
    """[size, size, 3]: unknown texels as the nearest known one in space, the others of the texture as the
    nearest one on it. Grey where nothing is known."""
    from scipy.spatial import cKDTree

    if not bool(known.any()):
        return torch.full((size, size, 3), 0.5)
    if not bool(known.all()):
        unknown, sources = (~known).nonzero()[:, 0], known.nonzero()[:, 0]
        sources = sources[:: max(1, len(sources) // 50_000)]
        tree = cKDTree(texels.positions[sources].numpy())
        colors = colors.clone()
        colors[unknown] = colors[sources[tree.query(texels.positions[unknown].numpy())[1]]]
    return with_gutters(colors, texels.places, size)


def with_gutters(colors: Tensor, places: Tensor, size: int) -> Tensor:
    """[size, size, 3] with colours [M, 3] at places [M], and in between what is nearest."""
    from scipy.ndimage import distance_transform_edt

    empty = np.ones(size * size, bool)
    empty[places.numpy()] = False
    rows, columns = distance_transform_edt(
        empty.reshape(size, size), return_distances=False, return_indices=True
    )
    texture = torch.zeros(size * size, 3)
    texture[places] = colors
    return texture.view(size, size, 3)[torch.from_numpy(rows).long(), torch.from_numpy(columns).long()]
