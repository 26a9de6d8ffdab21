"""Packages that some formats need beside the base install, and the one line that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any

from ddpo3d_fast.errors import InputError

# By module: the package that brings it, and the extra of this program that brings that.
EXTRAS = {"zstandard": ("zstandard", "formats"), "pxr": ("usd-core", "formats")}


def load(module: str, what: str) -> Any:
    """A module of EXTRAS. Raises InputError, which names `what` needs it, where it is missing."""
    package, extra = EXTRAS[module]
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what} needs the package {package}: pip install 'ddpo3d-fast[{extra}]'") from None
