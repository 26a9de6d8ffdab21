"""What a user calls a reward: NAME, NAME@WHERE or module:function, each with =WEIGHT or without."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ddpo3d_fast.errors import InputError, suggestion

# Those whose weights are not in the package. No module of the user's can be called NAME@WHERE, so that
# `clip:score` stays a function of theirs.
PUBLISHED = ("aesthetic", "aesthetic-v1", "clip", "hps", "pickscore")


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
