"""What a user calls a reward: NAME, NAME@WHERE or module:function, each with =WEIGHT or without."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

from ddpo3d_fast.errors import InputError, suggestion

PREDICTORS = ("aesthetic", "aesthetic-v1")  # on CLIP: WHERE names either, or both
# Those whose weights are not in the package. No module of the user's can be called NAME@WHERE, so that
# `clip:score` stays a function of theirs.
PUBLISHED = (*PREDICTORS, "clip", "hps", "pickscore")


def parse_rewards(specs: Sequence[str]) -> list[tuple[str, float]]:
    """Names and weights of NAME or NAME=WEIGHT (1 if left out), before anything is loaded. What follows the
    last = of a path or a module and is no number is part of the name.

    InputError for a bad weight or a name that can be none.
    """
    parsed = [split_weight(spec) for spec in specs]
    for name, _ in parsed:
        kind, at, source = name.partition("@")
        known = name == "embedded" or (kind in PUBLISHED and (source or not at))
        if not known and not all(name.partition(":")):
            raise InputError(
                f"--reward: expected `embedded` or module:function of your own, got {name!r}, which is none "
                f"of {', '.join(PUBLISHED)} either{suggestion(kind, [*PUBLISHED, 'embedded'])}"
            )
    if not parsed:
        raise InputError("--reward: expected at least one NAME[=WEIGHT], got none")
    return parsed


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


def map_paths(name: str, change: Callable[[str], str]) -> str:
    """The same NAME@WHERE, with every file or folder of this machine that it names as `change` has it.

    A leading ~ is the home folder. What is no path, or is not there, stays as it is.
    """
    kind, at, where = name.partition("@")
    if kind not in PUBLISHED or not at:
        return name
    first, second = split_predictor(os.path.expanduser(where)) if kind in PREDICTORS else (where, "")
    return kind + at + _map_path(first, change) + (f",{_map_path(second, change)}" if second else "")


def _map_path(where: str, change: Callable[[str], str]) -> str:
    model, weights = split_model(where)
    for before, path in (("", where), (f"{model}:", weights)):
        if path and os.path.exists(os.path.expanduser(path)):
            return before + change(os.path.expanduser(path))
    return where
