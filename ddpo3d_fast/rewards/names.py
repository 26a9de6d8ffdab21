"""The parts of what a user calls a reward: a weight, a predictor and its CLIP, a model and its weights."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from ddpo3d_fast.errors import InputError

PREDICTORS = ("aesthetic", "aesthetic-v1")  # on CLIP: WHERE names either, or both


def split_weight(spec: str) -> tuple[str, float]:
    """Name and weight of NAME or NAME=WEIGHT. InputError for a weight that is no finite number."""
    name, equals, text = spec.rpartition("=")
    try:
        weight = float(text) if equals else 1.0
    except ValueError:
        weight = math.nan
        if "@" in name or ":" in text:  # a path's own =, or a module's
            equals, weight = "", 1.0
    if not math.isfinite(weight):
        raise InputError(f"--reward: expected NAME or NAME=WEIGHT with a finite number, got {spec!r}")
    return (name if equals else spec).strip(), weight


def split_predictor(where: str) -> tuple[str, str]:
    """Predictor and CLIP of PREDICTOR or PREDICTOR,CLIP; CLIP is empty where none is named.

    The first comma with a path before it parts them, and none in a path that is there as it stands.
    """
    if not os.path.exists(where):
        for at in (at for at, letter in enumerate(where) if letter == ","):
            if os.path.exists(where[:at]):
                return where[:at], where[at + 1 :]
    return where, ""


def split_model(where: str) -> tuple[str, str]:
    """Architecture and weights of MODEL:PRETRAINED or MODEL:FILE."""
    model, _, weights = where.partition(":")
    return model, weights


def map_path(where: str, change: Callable[[str], str]) -> str:
    """The same file, folder or MODEL:FILE as `change` has the path; what is not there stays as it is."""
    model, weights = split_model(where)
    for before, path in (("", where), (f"{model}:", weights)):
        if path and os.path.exists(os.path.expanduser(path)):
            return before + change(os.path.expanduser(path))
    return where
