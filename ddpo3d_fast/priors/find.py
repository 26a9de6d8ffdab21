"""Finds the folders of priors and codecs, wherever they are: see `hub`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from ddpo3d_fast import hub
from ddpo3d_fast.engines import default_dtype
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors import PRIORS, PriorSettings
from ddpo3d_fast.priors.folder import missing_part, wanted_files
from ddpo3d_fast.priors.parts import read_config

CODECS: dict[str, tuple[str, ...]] = {
    "taesd": ("madebyollin/taesd",),
    "taesdxl": ("madebyollin/taesdxl",),
}


def models() -> dict[str, tuple[str, ...]]:
    """The short names of all priors, each with the hub's repositories of it."""
    return {name: homes for kind in PRIORS.values() for name, homes in kind.models.items()}


def find_model(
    name: str,
    argument: str = "--model",
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    half: bool = False,
) -> Path:
    """The folder, in diffusers' format, of the model that `name` means, as `hub.find_folder` has it.

    Args:
        aliases: short names and their repositories; those of `models` if left out.
        half: whether weights in half precision are preferred, where there are both.
    """
    known = models() if aliases is None else aliases
    return hub.find_folder(name, argument, known, missing_part, partial(wanted_files, half=half))


def find_pipeline(wanted: PriorSettings) -> Path:
    """The folder of a prior, with its model_index.json. Raises InputError where there is none."""
    dtype = wanted.dtype or default_dtype(torch.device(wanted.device), wanted.runtime)
    folder = find_model(wanted.model, half=dtype != torch.float32)
    index = folder / "model_index.json"
    if not index.is_file():
        expected = "`embedded` or a folder with a model_index.json"
        raise InputError(f"--model: expected {expected}, got {wanted.model!r}")
    read_config(index)  # tells that it counts, and what is wrong with it
    return folder


def find_codec(name: str, half: bool) -> Path:
    """The folder of the autoencoder that the user has named. Raises InputError where there is none."""
    folder = find_model(name, "--codec", CODECS, half)
    if (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"--codec: expected an autoencoder's folder, got a pipeline's; its own is {folder / 'vae'}"
        )
    return folder
