"""From a field to its surface: triangles that close, few enough, and texture coordinates for them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddpo3d_fast.meshing.field import Field

SMOOTHING = 10  # rounds of Taubin's (1995), which keep the volume
GUTTER = 4  # texels between charts


class Surface(NamedTuple):
    """A mesh as the kernels and writers take it; corners at seams are there once for each chart."""

    vertices: np.ndarray  # [V, 3] float32
    normals: np.ndarray  # [V, 3] float32, outward, of length 1
    uvs: np.ndarray  # [V, 2] float32, v down
    triangles: np.ndarray  # [F, 3] int32, anticlockwise seen from outside


class Triangles(NamedTuple):
    """A mesh without texture."""

    vertices: np.ndarray  # [V, 3] float32
    triangles: np.ndarray  # [F, 3] int32


def surface_of(field: Field, faces: int) -> Triangles:
    """The field's surface, smoothed, with at most `faces` triangles. None where nothing is solid."""
    import fast_simplification
    import trimesh
    from skimage.measure import marching_cubes

    if not (field.values > 0).any():
        return Triangles(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    # Solid at the grid's end, it would be open there.
    closed = np.pad(field.values, 1, constant_values=-1.0)
    corners, triangles = marching_cubes(closed, 0.0)[:2]
    mesh = trimesh.Trimesh(field.at(corners - 1), triangles[:, ::-1], process=False)
    trimesh.smoothing.filter_taubin(mesh, iterations=SMOOTHING)
    vertices, triangles = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)
    if len(triangles) > faces:
        vertices, triangles = fast_simplification.simplify(vertices, triangles, target_count=faces)
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    if mesh.volume < 0:
        mesh.invert()
    return Triangles(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32))


def unwrapped(mesh: Triangles, size: int) -> Surface:
    """The mesh with a place on a texture of `size` texels a side for every triangle (xatlas), and smooth
    normals across seams."""
    import trimesh
    import xatlas

    normals = trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False).vertex_normals
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices, mesh.triangles.astype(np.uint32))
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding = size, GUTTER
    atlas.generate(pack_options=pack)
    origin, triangles, uvs = atlas[0]
    return Surface(
        mesh.vertices[origin],
        np.asarray(normals, np.float32)[origin],
        np.asarray(uvs, np.float32),
        triangles.astype(np.int32),
    )
