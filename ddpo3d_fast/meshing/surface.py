"""From a field to its surface: triangles that close, few enough, and texture coordinates for them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ddpo3d_fast.meshing.field import Field

SMOOTHING = 10  # rounds of Taubin's (1995), which keep the volume
HASTE = (7, 5, 3)  # of the decimation, fast-simplification's "aggressiveness", to try in turn
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
    import trimesh
    from skimage.measure import marching_cubes

    if not (field.values > 0).any():
        return Triangles(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    # Solid at the grid's end, it would be open there.
    closed = np.pad(field.values, 1, constant_values=-1.0)
    corners, triangles = marching_cubes(closed, 0.0)[:2]
    mesh = trimesh.Trimesh(field.at(corners - 1), triangles[:, ::-1], process=False)
    trimesh.smoothing.filter_taubin(mesh, iterations=SMOOTHING)
    smooth = Triangles(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32))
    return outward(smooth if len(smooth.triangles) <= faces else decimated(smooth, faces))


def decimated(mesh: Triangles, faces: int) -> Triangles:
    """The mesh with about `faces` triangles at most. Where many edges go at once two sides may get to share
    one, and it is no longer closed: then they go in smaller steps."""
    import fast_simplification

    tried = list[Triangles]()
    for haste in HASTE:
        tried.append(Triangles(*fast_simplification.simplify(*mesh, target_count=faces, agg=haste)))
        if len(tried[-1].triangles) <= faces and is_closed(tried[-1]):
            return tried[-1]
    return tried[0]


def is_closed(mesh: Triangles) -> bool:
    """Whether every edge has two triangles."""
    edges = np.sort(mesh.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2).astype(np.int64), 1)
    return bool((np.unique(edges @ [1 << 32, 1], return_counts=True)[1] == 2).all())


def outward(mesh: Triangles) -> Triangles:
    """The mesh with its triangles anticlockwise seen from outside."""
    a, b, c = (mesh.vertices[mesh.triangles[:, corner]].astype(np.float64) for corner in range(3))
    inside_out = np.einsum("fi,fi->", a, np.cross(b, c)) < 0  # six times the volume
    vertices, triangles = mesh.vertices.astype(np.float32), mesh.triangles.astype(np.int32)
    return Triangles(vertices, triangles[:, ::-1].copy() if inside_out else triangles)


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
