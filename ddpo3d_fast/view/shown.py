"""From a path to what is shown of it: Gaussians or a mesh, and some words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpo3d_fast import extras
from ddpo3d_fast.assets import read_splat
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.run import CONFIG, RunFolder, read_config
from ddpo3d_fast.scene import Gaussians, frame_of, framed
from ddpo3d_fast.scene.framing import MARGIN, OWN_BALL
from ddpo3d_fast.view.page import Page, markdown_text, table

ASSET = "asset.ply"  # the splat in the folder of a run
_HEADER = 1 << 16  # bytes in which a ply's header ends
_FIGURES = ("step", "loss", "reward", "gaussians")  # of a run's last step


class Shown(NamedTuple):
    """What a page shows."""

    scene: Any  # Gaussians, or trimesh's scene; in this program's world, of about the unit ball
    text: str  # Markdown

    def show(self, page: Page) -> None:
        """Puts the scene on a page."""
        if isinstance(self.scene, Gaussians):
            page.show_gaussians(self.scene)
        else:
            page.show_mesh(self.scene)


def load(path: Path) -> Shown:
    """What there is to see at a path: a splat, a mesh, or the folder of a run. Raises InputError, which says
    what is wrong with it."""
    if not path.exists():
        raise InputError(
            f"path: expected an asset, a mesh or a folder of runs, got {path}, which is not there"
        )
    if path.is_dir():
        scene = _gaussians(path / ASSET)
        return Shown(scene, _text_of_run(path))
    if is_mesh(path):
        mesh = _mesh(path)
        faces = sum(len(part.faces) for part in mesh.geometry.values() if hasattr(part, "faces"))
        return Shown(mesh, f"**{markdown_text(path.name)}**\n\n{table({'faces': faces})}")
    scene = _gaussians(path)
    return Shown(scene, f"**{markdown_text(path.name)}**\n\n{table({'gaussians': len(scene)})}")


def is_mesh(path: Path) -> bool:
    """Whether a file is a mesh: an obj, a glTF that has no splats in it, or a ply with faces."""
    suffix = path.suffix.lower()
    if suffix == ".ply":
        try:
            with path.open("rb") as file:
                header = file.read(_HEADER).partition(b"end_header")[0].split(b"\n")
        except OSError as error:
            raise InputError(f"path: cannot read {path}: {error.strerror or error}") from error
        faces = [line.split()[2:] for line in header if line.split()[:2] == [b"element", b"face"]]
        return any(count != [b"0"] for count in faces)
    if suffix in (".glb", ".gltf"):
        return b"KHR_gaussian_splatting" not in path.read_bytes()
    return suffix == ".obj"


def _gaussians(path: Path) -> Gaussians:
    gaussians = Gaussians(*read_splat(path).gaussians)
    return framed(gaussians, frame_of(gaussians))


def _mesh(path: Path) -> Any:
    """trimesh's scene of a file, moved and scaled into the unit ball unless it lies there as it is."""
    trimesh = extras.load("viewer", "trimesh", f"view {path}")
    try:
        scene = trimesh.load_scene(path)
        parts = [part for part in scene.geometry.values() if len(getattr(part, "faces", ()))]
        whole = all(np.isfinite(part.vertices).all() for part in parts)
        low, high = np.asarray(scene.bounds, dtype=np.float64) if parts else np.zeros((2, 3))
    except Exception as error:  # what trimesh raises for damaged files shares no base class
        raise InputError(f"path: {path} is no mesh that trimesh can read ({first_line(error)})") from error
    if not parts or not whole:
        reason = "has vertices that are not finite" if parts else "has no faces"
        raise InputError(f"path: expected a mesh, got {path}, which {reason}")
    least, most = OWN_BALL
    radius = float(np.linalg.norm(high - low)) / 2
    if radius < least or np.linalg.norm(np.maximum(abs(low), abs(high))) > most * 3**0.5:
        placed = np.eye(4)
        placed[:3] /= (radius or 1.0) * MARGIN / most
        placed[:3, 3] = -placed[:3, :3] @ (low + high) / 2
        scene.apply_transform(placed)
    return scene


def _text_of_run(folder: Path) -> str:
    """What is known of a run beside its asset; what cannot be read is left out."""
    try:
        config = read_config(folder / CONFIG, "path")
        rows = RunFolder(folder, config).read_metrics()
    except InputError:
        return f"**{markdown_text(folder.name)}**"
    figures = {"seed": config.seed, "preset": config.preset}
    figures |= {name: rows[-1][name] for name in _FIGURES if rows and rows[-1].get(name) is not None}
    return f"**{markdown_text(config.prompt)}**\n\n{table(figures)}"
