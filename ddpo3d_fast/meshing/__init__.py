"""From Gaussians to a textured mesh: where they are solid, the surface of that, and its colours."""

from ddpo3d_fast.meshing.bake import bake
from ddpo3d_fast.meshing.convert import Framed, MeshSettings, framed_mesh, to_mesh
from ddpo3d_fast.meshing.field import Field, solid_field
from ddpo3d_fast.meshing.surface import Surface, surface_of, unwrapped

__all__ = [
    "Field",
    "Framed",
    "MeshSettings",
    "Surface",
    "bake",
    "framed_mesh",
    "solid_field",
    "surface_of",
    "to_mesh",
    "unwrapped",
]
