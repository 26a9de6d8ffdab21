"""The command `mesh`: from the Gaussians of a run, or of a file, to a textured mesh."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.extras import EXTRAS, load
from ddpo3d_fast.settings import check_values

if TYPE_CHECKING:
    from ddpo3d_fast.arguments import Mesh

ASSET, MESH = "asset.ply", "mesh.glb"  # in the folder of a run


def mesh(settings: Mesh) -> Path:
    """Writes the mesh and returns where it is. Raises InputError for wrong settings, a wrong file, Gaussians
    of which nothing is solid, or a missing package, with nothing written."""
    check_values(settings)
    asset = _asset(settings.asset)
    for module in EXTRAS["mesh"].values():
        load("mesh", module, "mesh")

    from ddpo3d_fast.assets import mesh_writer, read_ply
    from ddpo3d_fast.meshing import MeshSettings, to_mesh
    from ddpo3d_fast.scene import Gaussians

    output = _output(settings)
    write = mesh_writer(output)
    gaussians = Gaussians(*read_ply(asset))
    made = to_mesh(gaussians, MeshSettings(settings.faces, settings.texture_size, settings.resolution))
    write(output, made)
    return output


def _asset(path: Path) -> Path:
    """The file with the Gaussians."""
    file = path / ASSET if path.is_dir() else path
    if not file.is_file():
        reason = f"has no {ASSET}" if path.is_dir() else "does not exist"
        raise InputError(f"asset: expected a ply file or the folder of a run, got {path}, which {reason}")
    return file


def _output(settings: Mesh) -> Path:
    asset, output = settings.asset, settings.output
    if output is None:
        return asset / MESH if asset.is_dir() else asset.with_name(f"{asset.stem}-{MESH}")
    if output.exists() and asset.is_file() and output.samefile(asset):
        raise InputError(f"--output: expected another file than the asset, got {output}")
    return output
