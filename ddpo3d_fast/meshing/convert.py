"""From Gaussians of any program to a mesh in their own world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ddpo3d_fast.assets import Mesh
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.meshing.bake import bake
from ddpo3d_fast.meshing.field import solid_field
from ddpo3d_fast.meshing.surface import surface_of, unwrapped
from ddpo3d_fast.scene import Gaussians, frame_of, framed


@dataclass(frozen=True)
class MeshSettings:
    """How fine a mesh is."""

    faces: int  # triangles at most
    texture_size: int  # texels of a side
    resolution: int  # points of the grid along its longest side


def to_mesh(gaussians: Gaussians, settings: MeshSettings) -> Mesh:
    """The mesh of Gaussians in a y-up world, in the same world and units.

    Raises InputError where nothing of them is solid.
    """
    frame = frame_of(gaussians)
    inside = framed(gaussians.to("cpu"), frame)
    solid = surface_of(solid_field(inside, settings.resolution), settings.faces)
    if not len(solid.triangles):
        raise InputError(
            f"asset: expected something solid, got {len(gaussians)} Gaussians too faint for a mesh"
        )
    surface = unwrapped(solid, settings.texture_size)
    texture = bake(inside, surface, settings.texture_size)
    vertices = surface.vertices.astype(np.float64) * frame.radius + frame.center.numpy()
    return Mesh(
        torch.from_numpy(vertices.astype(np.float32)),
        torch.from_numpy(surface.normals),
        torch.from_numpy(surface.uvs),
        torch.from_numpy(surface.triangles),
        texture,
    )
