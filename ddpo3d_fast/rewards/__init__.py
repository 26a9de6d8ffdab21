"""Rewards: what a view is worth. The embedded scorer, CLIP's, the user's own functions, weighted sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ddpo3d_fast.engines import choose_runtime
from ddpo3d_fast.rewards.aesthetic import is_at_hand
from ddpo3d_fast.rewards.base import (
    Reward,
    RewardKind,
    RewardSettings,
    Scores,
    scores_of,
    scores_vjp_of,
)
from ddpo3d_fast.rewards.function import FunctionReward, find_function
from ddpo3d_fast.rewards.kinds import REWARDS
from ddpo3d_fast.rewards.specs import absolute_reward, in_table, map_paths, parse_rewards, short_names
from ddpo3d_fast.rewards.weighted import WeightedReward


def make_reward(specs: Sequence[str], wanted: RewardSettings | None = None) -> Reward:
    """The reward that `specs` name, each NAME or NAME=WEIGHT (1 if left out); several are summed.

    NAME is one of REWARDS, alone, or with its choice as NAME:CHOICE, or, where its weights can be named, with
    their source as NAME@SOURCE (the docstrings of what makes them say which there are); or `module:function`
    of the user's, found on the Python path or in the working directory, or in the folder of
    FOLDER/module:function. `wanted` is as on the CPU if left out; a user's function has its own runtime.
    InputError for an unknown name, a bad weight, a runtime that is not to be had, weights that cannot be had
    or read, a missing module or function, or a function that does not score.
    """
    wanted = wanted or RewardSettings()
    parts: list[tuple[Reward, float]] = []
    for name, weight in parse_rewards(specs):
        if known := in_table(map_paths(name, lambda path: path)):
            kind, source = known
            # Before a download, or a long load.
            exports = REWARDS[kind].sourced  # else its graphs are in the package
            choose_runtime(wanted.runtime, torch.device(wanted.device), wanted.dtype, exports)
            parts.append((REWARDS[kind].make(source, wanted), weight))
        else:
            parts.append((FunctionReward(name, find_function(name), wanted.device), weight))
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    return WeightedReward(parts)


__all__ = [
    "REWARDS",
    "FunctionReward",
    "Reward",
    "RewardKind",
    "RewardSettings",
    "Scores",
    "WeightedReward",
    "absolute_reward",
    "is_at_hand",
    "make_reward",
    "map_paths",
    "parse_rewards",
    "scores_of",
    "scores_vjp_of",
    "short_names",
]
