"""What the loop asks of a reward, and what one is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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


@dataclass(frozen=True)
class RewardSettings:
    """Where a reward runs, and for which run. A kind passes over what means nothing to it."""

    device: torch.device | str = "cpu"
    runtime: str = "auto"
    """one of `engines.RUNTIMES`, or auto"""
    dtype: torch.dtype | None = None
    """what CLIP's towers compute in; None: fp16 on CUDA, fp32 on the CPU"""
    batches: tuple[int, int] | None = None
    """pictures of a call of `score` and of one of `score_vjp`, where known, for the engines' profiles"""


class RewardKind(NamedTuple):
    """What a name behind --reward means."""

    make: Callable[[str, RewardSettings], Reward]
    """From what follows the @ of NAME@SOURCE, and where to run. Raises InputError, one line."""
    sourced: bool = True
    """whether its weights may be named so; without a source they are looked for, and fetched"""


def check_images(images: Tensor, device: torch.device, square: bool = False) -> None:
    """Raises ValueError or TypeError for anything but float32 [B, 3, H, W] on a device of this kind."""
    shape = list(images.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape[2:] or (square and shape[2] != shape[3]):
        raise ValueError(f"images: expected shape [B, 3, {'N, N' if square else 'H, W'}], got {shape}")
    if images.dtype != torch.float32:
        raise TypeError(f"images: expected float32, got {images.dtype}")
    if images.device.type != device.type:
        raise ValueError(f"images: expected device {device}, got {images.device}")
