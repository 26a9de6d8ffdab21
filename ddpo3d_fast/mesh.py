"""The command `mesh`: from the Gaussians of a run, or of a file, to a textured mesh; and what --mesh adds."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.extras import EXTRAS, load
from ddpo3d_fast.settings import check_values

if TYPE_CHECKING:
    from ddpo3d_fast.commands import Mesh
    from ddpo3d_fast.generate import Result
    from ddpo3d_fast.journal import Observer
    from ddpo3d_fast.settings import Config


def mesh(settings: Mesh, observer: Observer) -> Path:
    """Writes the mesh, telling `observer` of what takes time, and returns where it is.

    Raises InputError for wrong settings, a wrong file, Gaussians of which nothing is solid, or a missing
    package, with nothing written. After Ctrl-C in a refinement the mesh is written as it is by then, and
    KeyboardInterrupt goes on.
    """
    check_values(settings)
    from ddpo3d_fast.assets import mesh_writer, read_splat, splat_path
    from ddpo3d_fast.meshing import MeshSettings, framed_mesh
    from ddpo3d_fast.scene import Gaussians

    asset, config = splat_path(settings.asset, "asset"), _config(settings)
    check_packages("mesh")
    output, steps = _output(settings), settings.refine_steps
    write = mesh_writer(output)
    gaussians = Gaussians(*read_splat(asset).gaussians)
    observer({"stage": "mesh", "message": f"making a mesh of {len(gaussians)} Gaussians"})
    made = framed_mesh(gaussians, MeshSettings(settings.faces, settings.texture_size, settings.resolution))
    done = 0
    if config is not None:
        from ddpo3d_fast.refine import refined

        made, done = refined(made, config, steps, observer)
    write(output, made.mesh())
    if done < steps:
        raise KeyboardInterrupt(f"{done} of {steps} refining steps are in {output}")
    return output


def with_mesh(result: Result, refine_steps: int, observer: Observer) -> Result:
    """What a run has made, with its mesh, as `mesh` makes it by default. Raises InputError, as `mesh`."""
    from ddpo3d_fast.commands import Mesh

    before = time.perf_counter()
    path = mesh(Mesh(result.folder, refine_steps=refine_steps), observer)
    took = time.perf_counter() - before
    seconds = result.seconds | {"mesh": took, "total": result.seconds["total"] + took}
    return dataclasses.replace(result, files=[path, *result.files], seconds=seconds)


def check_packages(purpose: str) -> None:
    """Raises InputError, one line that begins with `purpose`, where a package for meshes is missing."""
    for module in EXTRAS["mesh"].values():
        load("mesh", module, purpose)


def _config(settings: Mesh) -> Config | None:
    """What the run was made with, where its mesh is to be refined."""
    if not settings.refine_steps:
        return None
    if not settings.asset.is_dir():
        raise InputError(
            f"--refine-steps: expected the folder of a run, whose prompt and models refine its mesh, "
            f"got {settings.asset}"
        )
    from ddpo3d_fast.run import CONFIG, read_config

    return read_config(settings.asset / CONFIG, "--refine-steps")


def _output(settings: Mesh) -> Path:
    from ddpo3d_fast.assets import RUN_MESH

    asset, output = settings.asset, settings.output
    if output is None:
        return asset / RUN_MESH if asset.is_dir() else asset.with_name(f"{asset.stem}-{RUN_MESH}")
    if output.exists() and asset.is_file() and output.samefile(asset):
        raise InputError(f"--output: expected another file than the asset, got {output}")
    return output
