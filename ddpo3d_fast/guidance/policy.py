"""The policy gradient's arithmetic: when it acts, and how rewards become advantages (docs/method.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpo3d_fast.step import Step

ADVANTAGE_CLIP = 5.0  # DDPO (arXiv 2305.13301), section 5.1 of its code's defaults
WINDOW, MIN_WINDOW = 32, 16  # DDPO's per-prompt window of rewards
RAMP = 0.2  # fraction of the timesteps over which the weight rises
REWARDSDS, RANKED = (0.9, -0.1), 2  # RewardSDS's weights of the best and of the worst noises, so many of each
_TINY = 1e-6


def policy_schedule(timestep: Tensor, max_timestep: float) -> Tensor:
    """Weight in [0, 1] at a timestep given as a fraction of the training timesteps, of any shape.

    0 above `max_timestep`, rising linearly to 1 over the next 0.2: at high noise the clean guess depends on
    the prompt alone, so that its reward says nothing of the action.
    """
    return ((max_timestep - timestep) / RAMP).clamp(0.0, 1.0)


def is_due(step: Step, every: int, updates: int = 1) -> bool:
    """Whether the policy acts in a step: in the first, and in every so many from there. Where a batch of
    actions serves several updates, it is batches that count, and it acts in all steps of one."""
    return (step.number - 1) // updates % every == 0


def group_spread(rewards: Tensor) -> Tensor:
    """Standard deviations [V] of the rewards [V, K] of each view's K actions; 0 where there is one action."""
    return rewards.std(dim=1) if rewards.shape[1] > 1 else torch.zeros_like(rewards[:, 0])


def group_advantages(rewards: Tensor) -> Tensor:
    """Advantages [V, K] of rewards [V, K] of the K actions of each view.

    Deviations from the view's mean, in units of its standard deviation, clipped to 5. A view whose rewards
    are all equal has none.
    """
    spread = group_spread(rewards)[:, None]
    return ((rewards - rewards.mean(dim=1, keepdim=True)) / (spread + _TINY)).clamp(
        -ADVANTAGE_CLIP, ADVANTAGE_CLIP
    )


def pair_advantages(rewards: Tensor) -> Tensor:
    """Advantages [K] of the first of each pair of rewards [K, 2] of opposite actions.

    Half their difference, which is what the first has above the pair's mean, in units of its root mean
    square over the pairs, clipped to 5. The second has the opposite.
    """
    above = (rewards[:, 0] - rewards[:, 1]) / 2
    return (above / (above.square().mean().sqrt() + _TINY)).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)


def ranked_advantages(rewards: Tensor) -> Tensor:
    """Advantages [V, K] of rewards [V, K], K at least 4, that make RewardSDS of the noise policy at weight 1.

    RewardSDS (arXiv 2503.09601) weighs the residuals of a view's noises by 0.45 for its best two, -0.05 for
    its worst two, and 0 for the others; the policy by (1 + A) / K.
    """
    count = rewards.shape[1]
    weights = torch.zeros_like(rewards)
    weights[:, :RANKED] = REWARDSDS[1] / RANKED  # by rank, from the worst
    weights[:, -RANKED:] = REWARDSDS[0] / RANKED
    ranks = rewards.argsort(dim=1, stable=True).argsort(dim=1)
    return count * weights.gather(1, ranks) - 1


class RunningBaseline:
    """Advantages against a window of the run's last rewards, as DDPO keeps one for each prompt.

    `window` is a float32 tensor [32], oldest reward first and NaN where none has been seen yet; it is changed
    in place, so that a captured CUDA graph finds it.
    """

    def __init__(self, rewards: Sequence[float] | Tensor = (), device: torch.device | str = "cpu") -> None:
        seen = torch.as_tensor(rewards, dtype=torch.float32, device=device)[-WINDOW:]
        self.window = torch.cat([seen.new_full((WINDOW - len(seen),), math.nan), seen])

    def advantages(self, rewards: Tensor) -> Tensor:
        """Advantages of [V, K] rewards, which then join the window; 0 while fewer than 16 have been seen."""
        seen, count = self.window.nan_to_num(0.0), (~self.window.isnan()).sum()
        mean = seen.sum() / count.clamp_min(1)
        deviations = torch.where(self.window.isnan(), torch.zeros_like(seen), seen - mean)
        spread = (deviations.square().sum() / (count - 1).clamp_min(1)).sqrt()
        advantages = ((rewards - mean) / (spread + _TINY)).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
        self.window.copy_(torch.cat([self.window, rewards.flatten().float()])[-WINDOW:])
        return torch.where(count >= MIN_WINDOW, advantages, torch.zeros_like(advantages))


def importance(drawn: Tensor, now: Tensor) -> Tensor:
    """[V, K] ratios of an action's density under the policy as it is now to that when it was drawn.

    Of its standardised coefficients [V, K, ...] under either, of one deviation. log pi is -c^2 / 2 but for
    constants, and its mean over dimensions is taken, not its sum, as DDPO's code does.
    """
    return ((drawn - now) * (drawn + now)).flatten(2).mean(2).mul(0.5).exp()


def clipped_weights(advantages: Tensor, ratios: Tensor, clip: float) -> Tensor:
    """[V, K], what multiplies grad log pi in the gradient of PPO's objective (arXiv 1707.06347, eq. 7),
    min(ratio A, clip(ratio, 1 - clip, 1 + clip) A): ratio A, and 0 where the clip binds."""
    beyond = torch.where(advantages > 0, ratios - 1, 1 - ratios) > clip
    return torch.where(beyond, torch.zeros_like(ratios), ratios * advantages)


def lots(seed: int, number: int, rows: int, columns: int) -> Tensor:
    """[rows, columns] random numbers for `shuffled`, by a generator of their own for step `number`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.rand(rows, columns, generator=generator)


def shuffled(advantages: Tensor, lots: Tensor) -> Tensor:
    """The control: a view's advantages [V, K] in a random order; they keep their spread and lose their
    meaning. `lots` [V, K] are the random numbers that decide it."""
    return advantages.gather(1, lots.argsort(dim=1))
