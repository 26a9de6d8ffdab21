"""A textured mesh, as writers take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Mesh(NamedTuple):
    """In a world with y up and the front towards +z, on the CPU. A corner on a seam of the texture is there
    once for each side, at the same place."""

    vertices: Tensor  # [V, 3] float32
    normals: Tensor  # [V, 3] float32, outward, of length 1
    uvs: Tensor  # [V, 2] float32, from the texture's upper left corner, v down
    triangles: Tensor  # [F, 3] int32, anticlockwise seen from outside
    texture: Tensor  # [R, R, 3] float32 in [0, 1], as a screen shows it (sRGB)
