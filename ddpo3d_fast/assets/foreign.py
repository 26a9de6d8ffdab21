"""Gaussian splats in formats that are not read here: what they are, and what makes a ply of them."""

from __future__ import annotations

import shlex
from pathlib import Path

# What splat-transform 3.7.0 reads and this program does not; it goes by the name alone.
_CONVERTED = {
    ".ksplat": "a .ksplat file",
    ".lcc": "an LCC file",
    ".lcc2": "an LCC file",
    "lod-meta.json": "the index of a streamed SOG file",
}


def describe_foreign(path: Path) -> str:
    """One line for a file whose name says that it is such a splat: how to convert it. Empty for other
    names."""
    name, suffix = path.name.lower(), path.suffix.lower()
    if kind := _CONVERTED.get(name) or _CONVERTED.get(suffix):
        command = shlex.join(["npx", "@playcanvas/splat-transform", str(path), str(path.with_suffix(".ply"))])
        return f"{path}: {kind}, which is not read here; make a ply of it: {command}"
    return ""
