"""The command `export`: from a file with a Gaussian splat to files of other formats."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import write_each
from ddpo3d_fast.settings import check_values

if TYPE_CHECKING:
    from ddpo3d_fast.commands import Export


def convert(settings: Export) -> list[Path]:
    """Writes the files and returns where they are.

    Raises InputError for wrong settings or a wrong asset, with nothing written, and for files that could not
    be written, once the others are.
    """
    check_values(settings)
    from ddpo3d_fast.assets import check_suffix, read_splat, splat_path, write_splat

    asset = splat_path(settings.asset, "asset")
    outputs = _outputs(asset, settings.outputs)
    suffixes = [check_suffix(path, "OUT") for path in outputs]
    gaussians = read_splat(asset, settings.up).gaussians
    options: dict[str, dict[str, Any]] = {".spz": {"version": settings.spz_version}}
    write_each(
        *(
            partial(write_splat, path, gaussians, settings.orientation, **options.get(suffix, {}))
            for path, suffix in zip(outputs, suffixes, strict=True)
        )
    )
    return outputs


def _outputs(asset: Path, given: tuple[Path, ...]) -> list[Path]:
    """The files to write; a suffix alone stands for the asset's name with it."""
    from ddpo3d_fast.assets import FORMATS, suffix_of

    if not given:
        raise InputError(f"OUT: expected files to write, which end in {', '.join(FORMATS)}, got none")
    stem = asset.name[: len(asset.name) - len(suffix_of(asset) or asset.suffix)]
    outputs = [
        asset.with_name(stem + path.name.lower()) if path.name.lower() in FORMATS else path for path in given
    ]
    for index, path in enumerate(outputs):
        if path.exists() and path.samefile(asset):
            raise InputError(f"OUT: expected another file than the asset, got {path}")
        if path in outputs[:index]:
            raise InputError(f"OUT: expected each file once, got {path} twice")
    return outputs
