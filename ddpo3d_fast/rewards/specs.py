"""What a user calls a reward: NAME, NAME@SOURCE or module:function, each with =WEIGHT or without."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ddpo3d_fast.errors import InputError, suggestion
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
        kind, at, source = name.partition("@")
        known = kind in REWARDS and (not at or (source and REWARDS[kind].sourced))
        if not known and not all(name.partition(":")):
            sourced = [kind for kind in REWARDS if REWARDS[kind].sourced]
            own = [kind for kind in REWARDS if not REWARDS[kind].sourced]
            quoted = " or ".join(f"`{each}`" for each in own)
            raise InputError(
                f"--reward: expected {quoted} or module:function of your own, "
                f"got {name!r}, which is none of {', '.join(sourced)} either"
                f"{suggestion(kind, [*sourced, *own])}"
            )
    if not parsed:
        raise InputError("--reward: expected at least one NAME[=WEIGHT], got none")
    return parsed


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
    in_table = name.partition("@")[0] in REWARDS
    absolute = map_paths(name, os.path.abspath) if in_table else absolute_function(name)
    if absolute == name:
        return spec
    # Without one, a path's own =2 would be its weight.
    return absolute + (spec.strip()[len(name) :] or ("=1" if "=" in absolute else ""))
