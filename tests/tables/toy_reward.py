"""A reward of one's own: redness, or that of another channel as toy@CHANNEL."""

import torch
from torch import Tensor

from ddpo3d_fast.rewards import RewardKind, RewardSettings


class Channel:
    name, differentiable, capturable, runtime = "toy", True, True, "plain torch"

    def __init__(self, source: str, wanted: RewardSettings) -> None:
        self.channel, self.wanted = int(source or 0), wanted

    def prepare(self, gradient: bool) -> None:
        """Nothing to make."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images[:, self.channel].mean((1, 2))

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        gradient = torch.zeros_like(images)
        gradient[:, self.channel] = 1 / images[0, 0].numel()
        return self.score(images, prompts), gradient


KIND = RewardKind(Channel)
