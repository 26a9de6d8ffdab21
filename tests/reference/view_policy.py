"""The view policy: docs/method.md, "The policy gradient"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddpo3d_fast.settings import Config

from .draws import philox_normal
from .exploration import Fields, across, counted, estimate, rho
from .scene import Tensors


def view_policy(
    pictures: Tensor,  # [V, 3, S, S]
    alpha: Tensor,  # [V, S, S]
    pull: Tensor,  # [V, 3, S, S] of distillation
    kept: Tensors,
    number: int,
    config: Config,
    score: Callable[[Tensor, list[str]], Tensor],
) -> tuple[Tensor, Tensors, dict[str, float]]:
    """What is added to the gradient on the pictures."""
    wishes, views = config.reward, len(pictures)
    if (number - 1) % wishes.policy_every:
        return torch.zeros_like(pictures), kept, {}
    fields = Fields(tuple(pictures.shape[1:]), wishes.policy_grid)
    c = philox_normal((wishes.policy_pairs, *fields.shape), config.seed, 2 * number + 1)
    rewards = torch.zeros(len(c), 2, dtype=torch.float64)
    for k in range(len(c)):
        move = wishes.policy_sigma * alpha[k % views] * fields(c[k])
        for side, sign in enumerate((1, -1)):
            moved = (pictures[k % views] + sign * move).clamp(0, 1)
            rewards[k, side] = score(moved[None], [config.prompt]).item()
    above = (rewards[:, 0] - rewards[:, 1]) / 2
    advantages = (above / ((above**2).mean().sqrt() + 1e-6)).clamp(-5, 5)
    if wishes.shuffle_advantages:
        generator = torch.Generator().manual_seed(1000003 * config.seed + number)
        advantages = advantages[torch.rand(1, len(c), generator=generator)[0].argsort()]
    found = [estimate(advantages[v::views], c[v::views]) for v in range(views)]
    sums = counted(kept["view_signal"], found)
    signal = rho(sums, views * c[0].numel())
    added = torch.zeros_like(pictures)
    for v, (g, _, _) in enumerate(found):
        towards = alpha[v] * fields(g)
        added[v] = -4 * wishes.policy_weight * signal * across(pull[v], towards) * towards / towards.norm()
    told = {"reward": float(rewards.mean()), "advantage_spread": float(rewards.std()), "signal": signal}
    return added, kept | {"view_signal": sums}, told
