"""What the loop asks of a reward, and what one is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


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


class Scores(NamedTuple):
    """What a reward says of pictures, and what each of those says that it is the sum of."""

    total: Tensor  # [B]
    each: dict[str, Tensor]  # [B] by the reward's name, on its own scale, without its weight


class SumOfRewards:
    """A reward whose scores come apart."""

    def scores(self, images: Tensor, prompts: list[str]) -> Scores:
        """As `score`, apart."""
        raise NotImplementedError

    def scores_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Scores, Tensor]:
        """As `score_vjp`, the scores apart; the gradient is the sum's."""
        raise NotImplementedError

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.scores(images, prompts).total

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        scores, gradient = self.scores_vjp(images, prompts)
        return scores.total, gradient


def scores_of(reward: Reward, images: Tensor, prompts: list[str]) -> Scores:
    """`reward.score`, and by name what it is the sum of: itself alone, if of none."""
    if isinstance(reward, SumOfRewards):
        return reward.scores(images, prompts)
    total = reward.score(images, prompts)
    return Scores(total, {reward.name: total})


def scores_vjp_of(reward: Reward, images: Tensor, prompts: list[str]) -> tuple[Scores, Tensor]:
    """`reward.score_vjp`, the scores by name, too."""
    if isinstance(reward, SumOfRewards):
        return reward.scores_vjp(images, prompts)
    total, gradient = reward.score_vjp(images, prompts)
    return Scores(total, {reward.name: total}), gradient


@dataclass(frozen=True)
class RewardSettings:
    """Where a reward runs, and for which run. A kind passes over what means nothing to it."""

    device: torch.device | str = "cpu"
    runtime: str = "auto"
    """one of `engines.RUNTIMES`, or auto"""
    dtype: torch.dtype | None = None
    """what CLIP's towers compute in; None: fp16 on CUDA; on the CPU fp32 for scores, for gradients as
    `engines.default_dtype`"""
    batches: tuple[int, int] | None = None
    """pictures of a call of `score` and of one of `score_vjp`, where known, for the engines' profiles"""


class RewardKind(NamedTuple):
    """What a name behind --reward means."""

    make: Callable[[str, RewardSettings], Reward]
    """From what follows the @ of NAME@SOURCE or the : of NAME:CHOICE, and where to run. Raises InputError,
    one line."""
    sourced: bool = True
    """whether its weights may be named so; without a source they are looked for, and fetched"""
    choices: Mapping[str, Any] = MappingProxyType({})
    """what may follow the colon of NAME:CHOICE, one of which must, if there are any"""


def check_images(images: Tensor, device: torch.device, square: bool = False) -> None:
    """Raises ValueError or TypeError for anything but float32 [B, 3, H, W] on a device of this kind."""
    shape = list(images.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape[2:] or (square and shape[2] != shape[3]):
        raise ValueError(f"images: expected shape [B, 3, {'N, N' if square else 'H, W'}], got {shape}")
    if images.dtype != torch.float32:
        raise TypeError(f"images: expected float32, got {images.dtype}")
    if images.device.type != device.type:
        raise ValueError(f"images: expected device {device}, got {images.device}")
