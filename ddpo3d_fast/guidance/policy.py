"""The policy gradient's arithmetic: when it acts, and how rewards become advantages (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ADVANTAGE_CLIP = 5.0  # DDPO (arXiv 2305.13301), section 5.1 of its code's defaults
WINDOW, MIN_WINDOW = 32, 16  # DDPO's per-prompt window of rewards
RAMP = 0.2  # fraction of the timesteps over which the weight rises
_TINY = 1e-6


def policy_schedule(timestep: Tensor, max_timestep: float) -> Tensor:
    """Weight in [0, 1] at a timestep given as a fraction of the training timesteps, of any shape.

    0 above `max_timestep`, rising linearly to 1 over the next 0.2: at high noise the clean guess depends on
    the prompt alone, so that its reward says nothing of the action.
    """
    return ((max_timestep - timestep) / RAMP).clamp(0.0, 1.0)


def group_advantages(rewards: Tensor) -> Tensor:
    """Advantages [V, K] of rewards [V, K] of the K actions of each view.

    Deviations from the view's mean, in units of its standard deviation, clipped to 5. A view whose rewards
    are all equal has none.
    """
    spread = rewards.std(dim=1, keepdim=True) if rewards.shape[1] > 1 else torch.zeros_like(rewards)
    return ((rewards - rewards.mean(dim=1, keepdim=True)) / (spread + _TINY)).clamp(
        -ADVANTAGE_CLIP, ADVANTAGE_CLIP
    )


class RunningBaseline:
    """Advantages against a window of the run's last rewards, as DDPO keeps one for each prompt.

    `window` is a float32 tensor, oldest reward first; it is replaced, never changed in place.
    """

    def __init__(self, window: Sequence[float] | Tensor = ()) -> None:
        self.window = torch.as_tensor(window, dtype=torch.float32)

    def advantages(self, rewards: Tensor) -> Tensor:
        """Advantages of [V, K] rewards, which then join the window; 0 while fewer than 16 have been seen."""
        seen = self.window.to(rewards.device)
        self.window = torch.cat([seen, rewards.flatten().float()])[-WINDOW:]
        if len(seen) < MIN_WINDOW:
            return torch.zeros_like(rewards)
        return ((rewards - seen.mean()) / (seen.std() + _TINY)).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)


def shuffled(advantages: Tensor, generator: torch.Generator) -> Tensor:
    """The control: a view's advantages in a random order; they keep their spread and lose their meaning.

    `generator` is a CPU generator.
    """
    order = torch.rand(advantages.shape, generator=generator).argsort(dim=1)
    return advantages.gather(1, order.to(advantages.device, non_blocking=True))
