"""What the optional extras of pyproject.toml bring, and the one line where one of them is missing."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import ModuleType

from ddpo3d_fast.errors import InputError, first_line

# By the extra's name: its packages, as pip calls them, with their modules. `info` lists them.
EXTRAS: Mapping[str, Mapping[str, str]] = {
    "tensorrt": {"tensorrt": "tensorrt", "onnx": "onnx", "onnxscript": "onnxscript"},
    "formats": {"usd-core": "pxr", "zstandard": "zstandard"},
    "mesh": {
        "scikit-image": "skimage",
        "fast-simplification": "fast_simplification",
        "xatlas": "xatlas",
        "trimesh": "trimesh",
        "scipy": "scipy",
    },
    "cluster": {"ray": "ray"},
    "viewer": {"viser": "viser"},
}


def missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    return [name for name, module in EXTRAS[extra].items() if importlib.util.find_spec(module) is None]


def load(extra: str, module: str, purpose: str) -> ModuleType:
    """A module that an extra brings. Raises InputError, one line that begins with `purpose` and says how to
    install the extra, where a package of it is missing or cannot be imported."""
    if lacking := missing(extra):
        raise InputError(f"{purpose}: needs {', '.join(lacking)}: {command(extra)}")
    try:
        return importlib.import_module(module)
    except Exception as error:  # what a package raises whose parts do not fit
        raise InputError(
            f"{purpose}: cannot import {module} ({first_line(error)}): {command(extra)}"
        ) from error


def command(extra: str) -> str:
    """What installs an extra."""
    return f"pip install 'ddpo3d-fast[{extra}]'"
