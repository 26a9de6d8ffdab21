"""From Gaussians of any program to a mesh in their own world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.assets import Mesh
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.meshing.bake import bake, texels_of, with_gutters
from ddpo3d_fast.meshing.field import solid_field
from ddpo3d_fast.meshing.surface import Surface, surface_of, unwrapped
from ddpo3d_fast.scene import Frame, Gaussians, Shape, frame_of, framed


@dataclass(frozen=True)
class MeshSettings:
    """How fine a mesh is."""

    faces: int  # triangles at most
    texture_size: int  # texels of a side
    resolution: int  # points of the grid along its longest side


class Framed(NamedTuple):
    """A textured surface in the unit ball, as cameras see it."""

    surface: Surface
    texture: Tensor  # [S, S, 3] in [0, 1]
    frame: Frame  # of the world that it came from

    def mesh(self) -> Mesh:
        """In that world."""
        surface, frame = self.surface, self.frame
        vertices = surface.vertices.astype(np.float64) * frame.radius + frame.center.numpy()
        return Mesh(
            torch.from_numpy(vertices.astype(np.float32)),
            torch.from_numpy(surface.normals),
            torch.from_numpy(surface.uvs),
            torch.from_numpy(surface.triangles),
            self.texture,
        )

    def shape(self) -> Shape:
        """What of it stays when its texture moves."""
        size, texels = self.texture.shape[0], texels_of(self.surface, self.texture.shape[0])
        positions, present = torch.zeros(size * size, 3), torch.zeros(size * size, dtype=torch.bool)
        positions[texels.places], present[texels.places] = texels.positions, True
        triangles = torch.from_numpy(self.surface.triangles)
        return Shape(
            torch.from_numpy(self.surface.vertices),
            triangles,
            torch.from_numpy(self.surface.uvs)[triangles.long()],
            positions.view(size, size, 3),
            present.view(size, size),
        )

    def painted(self, texture: Tensor) -> Framed:
        """With the colours of another texture where the surface has a place for them, and these around."""
        size, texels = texture.shape[0], texels_of(self.surface, texture.shape[0])
        return self._replace(texture=with_gutters(texture.reshape(-1, 3)[texels.places], texels.places, size))


def framed_mesh(gaussians: Gaussians, settings: MeshSettings) -> Framed:
    """The mesh of Gaussians in a y-up world. Raises InputError where nothing of them is solid."""
    frame = frame_of(gaussians)
    inside = framed(gaussians.to("cpu"), frame)
    solid = surface_of(solid_field(inside, settings.resolution), settings.faces)
    if not len(solid.triangles):
        raise InputError(
            f"asset: expected something solid, got {len(gaussians)} Gaussians too faint for a mesh"
        )
    surface = unwrapped(solid, settings.texture_size)
    return Framed(surface, bake(inside, surface, settings.texture_size), frame)


def to_mesh(gaussians: Gaussians, settings: MeshSettings) -> Mesh:
    """The mesh of Gaussians in a y-up world, in the same world and units. Raises InputError where nothing of
    them is solid."""
    return framed_mesh(gaussians, settings).mesh()
