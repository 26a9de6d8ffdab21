"""Sums of rewards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.rewards.base import Reward
from ddpo3d_fast.rewards.tower import TowerReward, sum_on_one_tower, tower_key


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
