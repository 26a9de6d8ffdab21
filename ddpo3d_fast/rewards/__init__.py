"""Rewards: what a view is worth. The embedded scorer, CLIP's, the user's own functions, weighted sums."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ddpo3d_fast.engines import choose_runtime
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.rewards.aesthetic import aesthetic_reward, is_at_hand
from ddpo3d_fast.rewards.clip import clip_reward
from ddpo3d_fast.rewards.embedded import EmbeddedScorer
from ddpo3d_fast.rewards.function import FunctionReward, find_function
from ddpo3d_fast.rewards.names import map_paths, parse_rewards
from ddpo3d_fast.rewards.preference import hps_reward, pickscore_reward
from ddpo3d_fast.rewards.tower import TowerReward, sum_on_one_tower, tower_key

# From what follows the @ of NAME@SOURCE, a device and a runtime to the reward.
TOWER_REWARDS: dict[str, Callable[[str, torch.device | str, str], TowerReward]] = {
    "aesthetic": functools.partial(aesthetic_reward, "aesthetic"),
    "aesthetic-v1": functools.partial(aesthetic_reward, "aesthetic-v1"),
    "clip": clip_reward,
    "hps": hps_reward,
    "pickscore": pickscore_reward,
}


class Reward(Protocol):
    """Scores pictures of a prompt; higher is better. No autograd graph leaves or enters a reward."""

    name: str
    differentiable: bool  # whether score_vjp can be called
    capturable: bool  # whether a CUDA graph can hold its calls: they neither wait nor copy from the host

    @property
    def runtime(self) -> str:
        """For people: what runs it."""

    def prepare(self, gradient: bool) -> None:
        """Makes now what the first call of `score`, or with `gradient` of `score_vjp`, would make."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images float32 [B, 3, H, W] in [0, 1], one prompt each -> float32 [B]."""

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Scores [B], and the gradient [B, 3, H, W] of each image's own score with respect to that image."""


class EmbeddedReward:
    """The embedded scorer of how clean a render looks, whatever its prompt."""

    name, differentiable, capturable = "embedded", True, True

    def __init__(
        self,
        device: torch.device | str = "cpu",
        runtime: str = "auto",
        batches: tuple[int, int] | None = None,
    ) -> None:
        self.scorer = EmbeddedScorer(device=device, runtime=runtime, batches=batches)
        self.runtime = self.scorer.runtime

    def prepare(self, gradient: bool) -> None:
        """Nothing to make."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.scorer.score(images)

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        return self.scorer.score_vjp(images)


class WeightedReward:
    """The sum of rewards times their weights. Its gradient is that of the differentiable ones alone.

    An image tower that several of them share runs once.
    """

    def __init__(self, parts: Sequence[tuple[Reward, float]]) -> None:
        self.name = " + ".join(f"{weight:g} {reward.name}" for reward, weight in parts)
        self.parts = _on_shared_towers(parts)
        self.differentiable = any(reward.differentiable for reward, _ in self.parts)
        self.capturable = all(reward.capturable for reward, _ in self.parts)
        self.runtime = " + ".join(dict.fromkeys(reward.runtime for reward, _ in self.parts))

    def prepare(self, gradient: bool) -> None:
        for reward, _ in self.parts:
            reward.prepare(gradient and reward.differentiable)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.stack([weight * reward.score(images, prompts) for reward, weight in self.parts]).sum(0)

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        if not self.differentiable:
            raise InputError(f"--reward: {self.name}: has no gradient with respect to the images")
        scores, gradient = torch.zeros(len(images), device=images.device), torch.zeros_like(images)
        for reward, weight in self.parts:
            if reward.differentiable:
                part, part_gradient = reward.score_vjp(images, prompts)
                gradient += weight * part_gradient
            else:
                part = reward.score(images, prompts)
            scores += weight * part
        return scores, gradient


def _on_shared_towers(parts: Sequence[tuple[Reward, float]]) -> list[tuple[Reward, float]]:
    """The same sum, with one reward for those of CLIP's whose towers are the same."""
    others = [(reward, weight) for reward, weight in parts if not isinstance(reward, TowerReward)]
    towers = [(reward, weight) for reward, weight in parts if isinstance(reward, TowerReward)]
    if len(towers) < 2:
        return list(parts)
    groups: dict[str, list[tuple[TowerReward, float]]] = {}
    for reward, weight in towers:
        groups.setdefault(tower_key(reward.tower), []).append((reward, weight))
    summed = (group[0] if len(group) == 1 else (sum_on_one_tower(group), 1.0) for group in groups.values())
    return [*others, *summed]


def make_reward(
    specs: Sequence[str],
    device: torch.device | str = "cpu",
    runtime: str = "auto",
    dtype: torch.dtype | None = None,
    batches: tuple[int, int] | None = None,
) -> Reward:
    """The reward that `specs` name, each NAME or NAME=WEIGHT (1 if left out); several are summed.

    NAME is `embedded`; one of TOWER_REWARDS, alone or with the source of its weights as NAME@SOURCE (their
    functions' docstrings say which there are); or `module:function` of the user's, found on the Python path
    or in the working directory, or in the folder of FOLDER/module:function. `runtime`, one of
    `load_network`'s, runs all but the user's, and what CLIP's towers compute in is `dtype` (None: fp16 on
    CUDA, else fp32). `batches` are the pictures that a call of `score` and one of `score_vjp` will bring,
    where that is known, for the engines' profiles. InputError for an unknown name, a bad weight, a runtime
    that is not to be had, weights that cannot be had or read, a missing module or function, or a function
    that does not score.
    """
    parts: list[tuple[Reward, float]] = []
    for name, weight in parse_rewards(specs):
        kind, _, source = map_paths(name, lambda path: path).partition("@")
        if name == "embedded":
            parts.append((EmbeddedReward(device, runtime, batches), weight))
        elif kind in TOWER_REWARDS:
            choose_runtime(runtime, torch.device(device), dtype)  # before a download, or a long load
            tower = TOWER_REWARDS[kind](source, device, runtime)
            tower.dtype, tower.batches = dtype, batches
            parts.append((tower, weight))
        else:
            parts.append((FunctionReward(name, find_function(name), device), weight))
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    return WeightedReward(parts)


__all__ = [
    "TOWER_REWARDS",
    "EmbeddedReward",
    "FunctionReward",
    "Reward",
    "WeightedReward",
    "is_at_hand",
    "make_reward",
    "map_paths",
    "parse_rewards",
]
