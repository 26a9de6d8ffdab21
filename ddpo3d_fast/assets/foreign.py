"""Gaussian splats in other formats than ply: what they are, and what makes a ply of them."""

from __future__ import annotations

import shlex
from pathlib import Path

# What splat-transform 3.7.0 reads beside ply; it goes by the name alone.
_CONVERTED = {
    ".spz": "an SPZ file",
    ".splat": "a .splat file",
    ".ksplat": "a .ksplat file",
    ".sog": "a SOG file",
    ".lcc": "an LCC file",
    ".lcc2": "an LCC file",
    "meta.json": "the index of an unpacked SOG file",
    "lod-meta.json": "the index of a streamed SOG file",
}
_OTHERS = {".glb": "a glTF file", ".gltf": "a glTF file", ".usd": "a USD file", ".usdz": "a USD file"}


def describe_foreign(path: Path) -> str:
    """One line for a file whose name says that it is a splat of another format: how to convert it, where that
    is possible. Empty for other names."""
    name, suffix = path.name.lower(), path.suffix.lower()
    if kind := _CONVERTED.get(name) or _CONVERTED.get(suffix):
        command = shlex.join(["npx", "@playcanvas/splat-transform", str(path), str(path.with_suffix(".ply"))])
        return f"{path}: {kind}, which is not read here; make a ply of it: {command}"
    if kind := _OTHERS.get(suffix):
        return f"{path}: {kind}, which is not read here; export a ply from the program that made it"
    return ""
