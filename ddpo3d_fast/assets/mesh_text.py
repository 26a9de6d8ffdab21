"""A mesh as .obj, with its material and its picture beside it, and as .ply with colours at its vertices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpo3d_fast.assets.images import to_uint8, write_png
from ddpo3d_fast.assets.mesh import Mesh
from ddpo3d_fast.files import write_bytes, write_text
from ddpo3d_fast.kernels import sample_texture


def write_obj(path: Path, mesh: Mesh) -> None:
    """Writes NAME.png, NAME.mtl and last NAME.obj (Wavefront's format): y up, v of the texture up."""
    name = path.stem
    write_png(path.with_suffix(".png"), mesh.texture)
    material = [f"newmtl {_WORD}", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "illum 1", f"map_Kd {name}.png", ""]
    write_text(path.with_suffix(".mtl"), "\n".join(material))
    lines = [f"mtllib {name}.mtl"]
    lines += [f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"vt {u:.7g} {1 - v:.7g}" for u, v in mesh.uvs.tolist()]
    lines += [f"vn {x:.5g} {y:.5g} {z:.5g}" for x, y, z in mesh.normals.tolist()]
    lines += [f"usemtl {_WORD}"]
    lines += [f"f {a}/{a}/{a} {b}/{b}/{b} {c}/{c}/{c}" for a, b, c in (mesh.triangles + 1).tolist()]
    write_text(path, "\n".join(lines) + "\n")


_WORD = "surface"  # of the material


_COLORS = ("red", "green", "blue")


def write_mesh_ply(path: Path, mesh: Mesh) -> None:
    """Writes binary little-endian ply with a vertex's position, normal and colour: the texture's where the
    vertex is. No picture goes with it, so corners at one place become one vertex."""
    vertices, joined = mesh.vertices.unique(dim=0, return_inverse=True)
    first = torch.empty(len(vertices), dtype=torch.int64)
    first[joined.flip(0)] = torch.arange(len(joined)).flip(0)  # of the corners at a place, the first counts
    colors, triangles = corner_colors(mesh)[first], joined[mesh.triangles.long()]
    floats = ("x", "y", "z", "nx", "ny", "nz")
    table = np.zeros(
        len(vertices), [*((name, "<f4") for name in floats), *((name, "u1") for name in _COLORS)]
    )
    columns = torch.cat([vertices, mesh.normals[first]], 1).numpy()
    for index, name in enumerate(floats):
        table[name] = columns[:, index]
    for index, name in enumerate(_COLORS):
        table[name] = to_uint8(colors).numpy()[:, index]
    faces = np.zeros(len(triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, triangles.numpy()
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {name}" for name in floats] + [f"property uchar {name}" for name in _COLORS]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    write_bytes(path, "\n".join(header).encode() + table.tobytes() + faces.tobytes())


def corner_colors(mesh: Mesh) -> Tensor:
    """[V, 3] the texture's colours at the mesh's vertices."""
    triangles = mesh.triangles.long()
    user = torch.zeros(len(mesh.vertices), dtype=torch.int64)  # a triangle's corner that is at the vertex
    user[triangles.view(-1)] = torch.arange(triangles.numel())
    weights = torch.nn.functional.one_hot(user % 3, 3).float()
    return sample_texture(mesh.texture, mesh.uvs[triangles], (user // 3).int(), weights)
