"""The table of splat formats, by suffix, and the one door to them: `read_splat` and `write_splat`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ddpo3d_fast.assets import compressed_ply, gltf, ply, sog, splat, spz, usd
from ddpo3d_fast.assets.foreign import describe_foreign
from ddpo3d_fast.assets.incoming import Incoming
from ddpo3d_fast.assets.outgoing import Outgoing
from ddpo3d_fast.assets.raw import PlyGaussians, check
from ddpo3d_fast.assets.turning import axes, from_file
from ddpo3d_fast.errors import FallbackWarning, InputError, first_line, suggestion

ASSET = "asset.ply"  # the splat in the folder of a run


class Format(NamedTuple):
    """How a kind of file is read and written."""

    read: Callable[[Path], Incoming]
    write: Callable[..., None]  # of a path and an Outgoing; of options that the format has
    up: str
    """Axis that points up in the files that are written"""
    degree: int = 3
    """Of the harmonics that it keeps"""


# A compressed ply is told from an ordinary one by its content.
FORMATS: dict[str, Format] = {
    ".ply": Format(ply.read, ply.write, ply.UP),
    ".compressed.ply": Format(ply.read, compressed_ply.write, ply.UP),
    ".spz": Format(spz.read, spz.write, spz.UP),
    ".splat": Format(splat.read, splat.write, splat.UP, degree=0),
    ".sog": Format(sog.read, sog.write, sog.UP),
    ".glb": Format(gltf.read, gltf.write, gltf.UP),
    ".usda": Format(usd.read, usd.write, usd.UP),
    ".usdc": Format(usd.read, usd.write, usd.UP),
    ".usdz": Format(usd.read, usd.write, usd.UP),
}
# Suffixes and names of what is read beside that.
_READ_TOO = {".gltf": ".glb", ".usd": ".usdc", "meta.json": ".sog"}
# What readers raise of a file whose parts do not fit, where they do not say so themselves.
_DAMAGED = (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError)


class Splat(NamedTuple):
    """A scene that was read."""

    gaussians: PlyGaussians  # in this program's world
    from_file: Tensor  # [3, 3] float64, what takes a direction in the file to this program's world


def suffix_of(path: Path) -> str:
    """The key of FORMATS that a file's name ends in; empty if there is none."""
    endings = [suffix for suffix in FORMATS if path.name.lower().endswith(suffix)]
    return max(endings, key=len, default="")


def splat_path(path: Path, argument: str) -> Path:
    """The file that a path of the user's means: itself, or the asset in the folder of a run.

    Raises InputError, which names `argument`, where there is none.
    """
    if path.is_dir() and (path / ASSET).is_file():
        return path / ASSET
    if not path.is_file():
        reason = f"is a folder without {ASSET}" if path.is_dir() else "does not exist"
        raise InputError(
            f"{argument}: expected a Gaussian splat or the folder of a run, got {path}, which {reason}"
        )
    return path


def read_splat(path: str | Path, up: str | None = None) -> Splat:
    """Reads the Gaussians of a file of any format of FORMATS, by its name; a ply by its content.

    Args:
        up: axis of the file that points up; None: the format's own.

    Raises:
        InputError: no such file, another format, a damaged file, or a package that its format needs is
            missing; one line that names the file.
    """
    path = Path(path)
    incoming = _reader(path)(path)
    up = up or incoming.up
    return Splat(from_file(incoming.gaussians, up), axes(up))


def _reader(path: Path) -> Callable[[Path], Incoming]:
    try:
        with path.open("rb") as file:
            start = file.read(3)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    suffix = suffix_of(path) or _READ_TOO.get(path.name.lower()) or _READ_TOO.get(path.suffix.lower(), "")
    if start == b"ply" or not suffix:
        if start != b"ply" and (said := describe_foreign(path)):
            raise InputError(said)
        suffix = ".ply"

    def read(path: Path) -> Incoming:
        try:
            return FORMATS[suffix].read(path)
        except InputError:
            raise
        except _DAMAGED as error:
            raise InputError(f"{path}: a damaged {suffix} file ({first_line(error)})") from error

    return read


def write_splat(path: str | Path, gaussians: PlyGaussians, up: str | None = None, **options: Any) -> None:
    """Writes Gaussians of this program's world as the path's suffix says, atomically. The same input gives
    the same bytes.

    Args:
        path: ends in one of FORMATS; missing folders are made.
        gaussians: finite, but for opacities; quaternions are normalised.
        up: axis of the file that points up; None: the format's own.
        options: of the format: `version` of .spz.

    Raises:
        ValueError: a shape that does not fit, or a value that is NaN or infinite.
        InputError: another suffix, a package that is missing, or a file that cannot be written.

    Warns of harmonics that the format has no room for.
    """
    path = Path(path)
    kind = FORMATS[check_suffix(path, "path")]
    check(gaussians)
    scene = Outgoing(gaussians, up or kind.up)
    if gaussians.degree > kind.degree:
        scene = scene.without_harmonics(kind.degree)
        warnings.warn(
            f"{path}: harmonics of degree {gaussians.degree} are left out: the format has none above "
            f"{kind.degree}, so colours no longer change with the direction",
            FallbackWarning,
            stacklevel=2,
        )
    kind.write(path, scene, **options)


def check_suffix(path: Path, argument: str) -> str:
    """The key of FORMATS for a path to write. Raises InputError, which names `argument`, for one without."""
    if suffix := suffix_of(path):
        return suffix
    close = suggestion(path.suffix.lower(), list(FORMATS))
    raise InputError(f"{argument}: expected a name that ends in {', '.join(FORMATS)}, got {path}{close}")
