"""What a user calls a reward: NAME, NAME@SOURCE, NAME:CHOICE or module:function, perhaps with =WEIGHT."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ddpo3d_fast.errors import InputError, choose, suggestion
from ddpo3d_fast.rewards.kinds import REWARDS
from ddpo3d_fast.rewards.names import PREDICTORS, map_path, split_predictor, split_weight
from ddpo3d_fast.rewards.paths import absolute_function


def parse_rewards(specs: Sequence[str]) -> list[tuple[str, float]]:
    """Names and weights of NAME or NAME=WEIGHT (1 if left out), before anything is loaded. What follows the
    last = of a path or a module and is no number is part of the name.

    InputError for a bad weight or a name that can be none.
    """
    parsed = [split_weight(spec) for spec in specs]
    for name, _ in parsed:
        if known := in_table(name):
            if choices := REWARDS[known[0]].choices:
                choose(choices, known[1], f"--reward: {known[0]}")
        elif not all(name.partition(":")):
            names = [f"{kind}:NAME" if of.choices else kind for kind, of in REWARDS.items()]
            raise InputError(
                f"--reward: expected one of {', '.join(names)}, or module:function of your own, got {name!r}"
                f"{suggestion(name.partition('@')[0], names)}"
            )
    if not parsed:
        raise InputError("--reward: expected at least one NAME[=WEIGHT], got none")
    return parsed


def in_table(name: str) -> tuple[str, str] | None:
    """Kind and source, or choice, of a name without a weight that REWARDS has; None for any other, as a
    function of the user's. A name with choices is no module of theirs; FOLDER/NAME:function still is."""
    kind, _, choice = name.partition(":")
    if kind in REWARDS and REWARDS[kind].choices:
        return kind, choice
    kind, at, source = name.partition("@")
    if kind in REWARDS and (not at or (source and REWARDS[kind].sourced)):
        return kind, source
    return None


def short_names(names: Iterable[str]) -> dict[str, str]:
    """How each is told to people: without source or folder, unless two would be called the same."""
    short = {name: name.partition("@")[0] if in_table(name) else os.path.basename(name) for name in names}
    counts = Counter(short.values())
    return {name: told if counts[told] == 1 else name for name, told in short.items()}


def map_paths(name: str, change: Callable[[str], str]) -> str:
    """The same NAME@SOURCE, with every file or folder of this machine that it names as `change` has it.

    A leading ~ is the home folder. What is no path, or is not there, stays as it is. No module of the user's
    can be called NAME@SOURCE, so that `clip:score` stays a function of theirs.
    """
    kind, at, source = name.partition("@")
    if not at or kind not in REWARDS or not REWARDS[kind].sourced:
        return name
    first, second = split_predictor(os.path.expanduser(source)) if kind in PREDICTORS else (source, "")
    return kind + at + map_path(first, change) + (f",{map_path(second, change)}" if second else "")


def absolute_reward(spec: str) -> str:
    """The same NAME[=WEIGHT], with the absolute paths of what it names on this machine.

    A module in the working directory becomes FOLDER/module:function. What is not found stays as it is.
    InputError as from `parse_rewards`.
    """
    ((name, _),) = parse_rewards([spec])
    absolute = map_paths(name, os.path.abspath) if in_table(name) else absolute_function(name)
    if absolute == name:
        return spec
    # Without one, a path's own =2 would be its weight.
    return absolute + (spec.strip()[len(name) :] or ("=1" if "=" in absolute else ""))
