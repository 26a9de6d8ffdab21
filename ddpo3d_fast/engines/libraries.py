"""The libraries that load other people's models, seconds to import, so only where one is needed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from types import ModuleType

import torch

from ddpo3d_fast.errors import InputError, first_line


def library(name: str, purpose: str) -> ModuleType:
    """The module `name`, a package of the extra `generate`.

    Raises InputError, one line that starts with `purpose`, where it is not installed or cannot be imported.
    """
    package = {"open_clip": "open_clip_torch"}.get(name.partition(".")[0], name.partition(".")[0])
    try:
        _mend_torchvision()
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: diffusers' and torch's way to say it
        raise InputError(
            f"{purpose}: needs {package} ({first_line(error)}): pip install 'ddpo3d-fast[generate]'"
        ) from error


@functools.cache
def _mend_torchvision() -> None:
    """Lets torchvision be imported beside a torch that its compiled operators do not fit.

    diffusers, transformers and open_clip all import it, for picture transforms in plain torch. The registry's
    torchvision is built for CUDA; beside a CPU build of torch its operators fail to load, and its import ends
    at the first that it wants to describe. Nothing here calls them, so their names are declared and no more.
    """
    if sys.modules.get("torchvision", ...) is None or importlib.util.find_spec("torchvision") is None:
        return
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            lacking = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if lacking is None:
                raise
            _declared().define(f"{lacking[1]}() -> ()")  # a second time raises: no endless loop
            for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[module]


@functools.cache
def _declared() -> torch.library.Library:
    return torch.library.Library("torchvision", "FRAGMENT")
