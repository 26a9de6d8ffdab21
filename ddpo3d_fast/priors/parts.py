"""Loads the parts of a diffusers folder: networks, tokenizers, configurations."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.files import read_json
from ddpo3d_fast.priors.folder import choose_weights
from ddpo3d_fast.sources import record


def read_config(path: Path) -> dict[str, Any]:
    """A part's JSON. Raises InputError that names it where it is missing or is none."""
    record(path)
    return read_json(path, "a part's configuration")


def load_network_part(package: str, kind: str, folder: Path, dtype: torch.dtype) -> Any:
    """The network of class `kind` of diffusers or transformers in a folder, on the CPU, frozen.

    Weights in half precision are read where `dtype` is half and they are there. Pickled ones (.bin) are read
    as tensors and nothing else: no code in them runs.

    Raises:
        InputError: one line that names the folder: a file is missing or damaged, or weights do not fit.
    """
    read_config(folder / "config.json")
    weights = choose_weights({path.name for path in folder.glob("*")}, folder.name, dtype != torch.float32)
    if weights is None:
        raise InputError(f"{folder}: expected weights, all of them, as .safetensors or .bin, found none")
    for name in weights.files:
        record(folder / name)
    options: dict[str, Any] = {
        "variant": weights.variant,
        "use_safetensors": weights.safetensors,
        "local_files_only": True,
        "output_loading_info": True,
        "dtype" if package == "transformers" else "torch_dtype": dtype,
    }
    loader = getattr(library(package, str(folder)), kind)
    try:
        with quietly():
            network, found = loader.from_pretrained(folder, **options)
    except Exception as error:  # what the two packages raise for damaged files shares no base class
        raise InputError(f"{folder}: is no {kind} that {package} can load ({first_line(error)})") from error
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise InputError(
            f"{folder}: is no whole {kind}: {len(lacking)} weights are missing, first {lacking[0]}"
        )
    return network.eval().requires_grad_(False)


def check_number(config: Any, name: str, path: Path, whole: bool = False) -> Any:
    """A value of a part's configuration, once it is a positive number. InputError, which names `path`, if
    not."""
    value = config.get(name)
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        kind = "whole number" if whole else "number"
        raise InputError(f"{path}: expected a positive {kind} for {name}, got {value!r}")
    return value


def load_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer. Raises InputError that names the folder."""
    record(folder)
    loader = library("transformers", str(folder)).CLIPTokenizer
    try:
        with quietly():
            return loader.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise InputError(f"{folder}: is no CLIP tokenizer ({first_line(error)})") from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the reports and progress bars of diffusers and transformers: what is wrong is raised."""
    rooms = [library(f"{package}.utils.logging", "a model") for package in ("diffusers", "transformers")]
    levels = [room.get_verbosity() for room in rooms]
    bars = [room.is_progress_bar_enabled() for room in rooms]
    for room in rooms:
        room.set_verbosity(50)  # critical
        room.disable_progress_bar()
    try:
        yield
    finally:
        for room, level, bar in zip(rooms, levels, bars, strict=True):
            room.set_verbosity(level)
            if bar:
                room.enable_progress_bar()
