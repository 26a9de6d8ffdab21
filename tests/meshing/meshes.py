"""A small mesh to write: a box whose six sides have six colours."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpo3d_fast.assets import Mesh
from ddpo3d_fast.kernels import rasterize_triangles, sample_texture
from ddpo3d_fast.scene import Cameras

SIDES = {"+x": (1.0, 0.0, 0.0), "-x": (0.0, 1.0, 0.0), "+y": (0.0, 0.0, 1.0)}
SIDES |= {"-y": (1.0, 1.0, 0.0), "+z": (1.0, 0.0, 1.0), "-z": (0.0, 1.0, 1.0)}


def box(size: int = 24) -> Mesh:
    """A box of half-sides 0.5, 0.4 and 0.3; each side has a third of the texture's width and half its
    height."""
    vertices, normals, uvs, triangles = [], [], [], []
    texture = torch.zeros(size, size, 3)
    half = torch.tensor([0.5, 0.4, 0.3])
    for number, (side, color) in enumerate(SIDES.items()):
        axis = "xyz".index(side[1])
        normal = torch.eye(3)[axis] * (1.0 if side[0] == "+" else -1.0)
        one = torch.eye(3)[(axis + 1) % 3]
        other = torch.linalg.cross(normal, one)
        column, row = number % 3, number // 3
        width, height = size // 3, size // 2
        texture[row * height : (row + 1) * height, column * width : (column + 1) * width] = torch.tensor(
            color
        )
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            vertices.append((normal + a * one + b * other) * half)
            normals.append(normal)
            uvs.append(torch.tensor([(column + 0.5 + 0.4 * a) / 3, (row + 0.5 + 0.4 * b) / 2]))
        first = 4 * number
        triangles += [[first, first + 1, first + 2], [first, first + 2, first + 3]]
    stacked = (torch.stack(rows) for rows in (vertices, normals, uvs))
    return Mesh(*stacked, torch.tensor(triangles, dtype=torch.int32), texture)


def picture(mesh: Mesh, camera: Cameras, size: int, samples: int = 4) -> Tensor:
    """[size, size, 3] of a mesh on white, without light."""
    side = samples * size
    seen = rasterize_triangles(
        mesh.vertices, mesh.triangles, camera.viewmats, camera.intrinsics(side, side), side, side
    )
    rgb = sample_texture(mesh.texture, mesh.uvs[mesh.triangles.long()], seen.triangles, seen.barycentrics)
    rgb = torch.where((seen.triangles >= 0)[..., None], rgb, 1.0)
    return torch.nn.functional.avg_pool2d(rgb.permute(0, 3, 1, 2), samples)[0].permute(1, 2, 0)
