"""The table of files that a mesh can be written to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ddpo3d_fast.assets.glb import write_glb
from ddpo3d_fast.assets.mesh import Mesh
from ddpo3d_fast.assets.mesh_text import write_mesh_ply, write_obj
from ddpo3d_fast.errors import choose

RUN_MESH = "mesh.glb"  # in the folder of a run that has one
# By the file's suffix. Each writes its file atomically; the same mesh gives the same bytes.
MESH_FORMATS: dict[str, Callable[[Path, Mesh], None]] = {
    ".glb": write_glb,
    ".obj": write_obj,
    ".ply": write_mesh_ply,
}


def mesh_writer(path: Path) -> Callable[[Path, Mesh], None]:
    """What writes a mesh to a path, by its suffix. Raises InputError for a suffix that none is for."""
    return choose(MESH_FORMATS, path.suffix.lower(), "--output")


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Writes a mesh, as the path's suffix says. Raises InputError for another suffix, or a file that cannot
    be written."""
    mesh_writer(path)(path, mesh)
