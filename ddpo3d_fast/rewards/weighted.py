"""Sums of rewards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.rewards.base import Reward, Scores, SumOfRewards, scores_of, scores_vjp_of
from ddpo3d_fast.rewards.tower import SharedTower, TowerReward, tower_key


class WeightedReward(SumOfRewards):
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

    def scores(self, images: Tensor, prompts: list[str]) -> Scores:
        parts = [(scores_of(reward, images, prompts), weight) for reward, weight in self.parts]
        return _sum(parts)

    def scores_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Scores, Tensor]:
        if not self.differentiable:
            raise InputError(f"--reward: {self.name}: has no gradient with respect to the images")
        parts, gradient = list[tuple[Scores, float]](), torch.zeros_like(images)
        for reward, weight in self.parts:
            if reward.differentiable:
                scores, part = scores_vjp_of(reward, images, prompts)
                gradient += weight * part
            else:
                scores = scores_of(reward, images, prompts)
            parts.append((scores, weight))
        return _sum(parts), gradient


def _sum(parts: list[tuple[Scores, float]]) -> Scores:
    total = torch.stack([weight * scores.total for scores, weight in parts]).sum(0)
    return Scores(total, {name: each for scores, _ in parts for name, each in scores.each.items()})


def _on_shared_towers(parts: Sequence[tuple[Reward, float]]) -> list[tuple[Reward, float]]:
    """The same sum, with one reward for those of CLIP's whose towers are the same and that count."""
    towers = [(reward, weight) for reward, weight in parts if isinstance(reward, TowerReward) and weight]
    if len(towers) < 2:
        return list(parts)
    others = [
        (reward, weight) for reward, weight in parts if not weight or not isinstance(reward, TowerReward)
    ]
    groups: dict[str, list[tuple[TowerReward, float]]] = {}
    for reward, weight in towers:
        groups.setdefault(tower_key(reward.tower), []).append((reward, weight))
    summed = [group[0] if len(group) == 1 else (SharedTower(group), 1.0) for group in groups.values()]
    return [*others, *summed]
