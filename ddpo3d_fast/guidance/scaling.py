"""How strongly an estimated policy gradient pulls: by its own signal, and relative to what else pulls.

One rule for every policy, so that a weight means the same for each of them and for every reward, and a reward
that says nothing does nothing (docs/method.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddpo3d_fast.vectors import length_across

NORMS = 4.0  # of distillation's, that latents or views are pulled with for weight 1 and no chance
DECAY = 0.9  # of a mean over steps
DEVIATIONS = 3.0  # by which a square must be above what chance gives
NONE = 1e-30  # keeps 0/0 away; the squares here are of the order of 1


def score_function_gradient(advantages: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the expected advantage with respect to the mean of a standard normal policy, and its
    variance, both [...], from advantages [K] of actions [K, ...].

    At mean 0 grad log pi(c) = c, so it is the mean of A_k c_k; the variance is that mean's own.
    """
    terms = advantages.view(-1, *[1] * (actions.dim() - 1)) * actions
    return terms.mean(0), terms.var(0) / len(terms)


def beyond_chance(square: Tensor, chance: Tensor, freedom: float | Tensor) -> Tensor:
    """What of squared lengths is no chance, 0 to 1 for each; `chance` is what those of chance alone are.

    The positive part of 1 - limit chance / square (James and Stein 1961). The limit is three deviations above
    1: those of a mean of `freedom` squares of standard normals. So what the reward says nothing of gets
    nothing.
    """
    limit = 1 + DEVIATIONS * (2 / freedom) ** 0.5
    return (square - limit * chance).clamp_min(0) / (square + NONE)


def relative_length(own: Tensor, pull: Tensor, whole: Tensor) -> Tensor:
    """[V] what brings `whole` [V, ...] to the length of what of `own` [V, ...] is across `pull` [V, ...]."""
    across = length_across(own.flatten(1), pull.flatten(1))
    return across / (whole.flatten(1).norm(dim=1) + NONE)


class RunningSignal:
    """What of a run's estimates is no chance, where every step's is of something else: of its own views.

    Squared lengths are compared with those of chance over the steps so far, the last ones counting most.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # Means over steps of squared length and of chance, and DECAY to the number of steps.
        self.sums = torch.tensor([0.0, 0.0, 1.0], device=device)

    def add(self, square: Tensor, chance: Tensor) -> None:
        """A step's estimates: their squared lengths [V], and what these are on average where nothing is
        known [V]."""
        self.sums[:2].lerp_(torch.stack([square.mean(), chance.mean()]), 1 - DECAY)
        self.sums[2:].mul_(DECAY)

    def __call__(self, freedom: int) -> Tensor:
        """[] what of the estimates is signal, 0 to 1; `freedom` numbers of a step are left to chance."""
        square, chance, left = self.sums
        steps = (1 + DECAY) / (1 - DECAY) * (1 - left) / (1 + left)  # that a mean with DECAY is worth
        return beyond_chance(square, chance, freedom * steps)
