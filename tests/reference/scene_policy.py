"""The scene policy: docs/method.md, "The policy gradient"."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast.settings import Config

from .draws import Draw, philox_normal
from .guidance import Score
from .scene import Tensors, render

WAVES = 4  # a band
BANDS = (1.5, 6.0, 24.0)
COLOR = 0.28209479177387814  # 1 / (2 sqrt(pi))
FIELDS = 1 + 2 * WAVES * len(BANDS)
# Columns of phi: with the constant, or of a finer band the cosines and the sines.
MEMBERS = [
    ([0] if band == 0 else [])
    + [1 + band * WAVES + i for i in range(WAVES)]
    + [1 + (len(BANDS) + band) * WAVES + i for i in range(WAVES)]
    for band in range(len(BANDS))
]
# Of sh, logit_opacities, log_scales and means, in this order.
UNITS = torch.tensor([0.3] * 3 + [0.5] + [0.2] * 3 + [0.02] * 3, dtype=torch.float64)


class Asked(NamedTuple):
    """What a step knows of the reward."""

    estimate: Tensor  # [2, F, C] m and v
    direction: Tensor  # [N, C]
    make_way: Tensor  # [V, 3, S, S] what the pictures' gradient gains
    metrics: dict[str, float]
    safe: bool  # whether no pixel's cut-off lies within the rounding of single precision


def moved(gaussians: Tensors, offsets: Tensor) -> Tensors:
    """By offsets [N, C] in units."""
    by = offsets * UNITS
    return gaussians | {
        "sh": gaussians["sh"] + by[:, None, :3],
        "logit_opacities": gaussians["logit_opacities"] + by[:, 3],
        "log_scales": gaussians["log_scales"] + by[:, 4:7],
        "means": gaussians["means"] + by[:, 7:],
    }


def scene_policy(
    gaussians: Tensors,
    grad_pictures: Tensor,
    estimate: Tensor,
    now: Draw,
    number: int,
    config: Config,
    score: Score,
    resized: Callable[[Tensor, int], Tensor],
) -> Asked:
    wishes, pairs = config.reward, config.reward.policy_pairs
    deviations = torch.tensor(BANDS).double().repeat_interleave(WAVES)
    waves = deviations * philox_normal((3, WAVES * len(BANDS)), config.seed, 1)
    phases = gaussians["means"] @ waves
    phi = torch.cat([torch.ones(len(phases), 1).double(), phases.cos(), phases.sin()], 1)
    phi = phi / math.sqrt(1 + WAVES * len(BANDS))
    (m, v), metrics, safe = estimate, {}, True
    if (number - 1) % wishes.policy_every == 0:
        c = philox_normal((pairs, FIELDS, len(UNITS)), config.seed, 2 * number + 1)
        if wishes.policy_moves == "colors":
            c[:, :, 3:] = 0
        size = min(now.rendered, now.picture)
        rewards = torch.zeros(pairs, 2, dtype=torch.float64)
        for k in range(pairs):
            view = k % config.schedule.views
            cameras, behind = now.cameras.only(view), now.backgrounds[view : view + 1]
            for side, sign in enumerate((1, -1)):
                other = moved(gaussians, sign * phi @ c[k])
                plain = 0.5 + COLOR * other["sh"][:, 0] if wishes.policy_moves == "colors" else None
                out = render(other, cameras, size, behind, colors=plain)
                picture = resized(out.rgb, now.picture).clamp(0, 1)
                rewards[k, side] = score(picture, [config.prompt]).item()
                safe = safe and bool(out.safe.all())
        above = (rewards[:, 0] - rewards[:, 1]) / 2
        advantages = (above / ((above**2).mean().sqrt() + 1e-6)).clamp(-5, 5)
        if wishes.shuffle_advantages:
            generator = torch.Generator().manual_seed(1000003 * config.seed + number)
            advantages = advantages[torch.rand(1, pairs, generator=generator)[0].argsort()]

        terms = advantages[:, None, None] * c
        m = 0.9 * m + 0.1 * terms.mean(0)
        v = 0.81 * v + 0.01 * terms.var(0) / pairs
        metrics |= {"reward": float(rewards.mean()), "advantage_spread": float(rewards.std())}
    known = m.clone()
    for columns in MEMBERS:
        square, chance = (m[columns] ** 2).sum(0), 1 + 3 * math.sqrt(2 / len(columns))
        known[columns] *= (1 - chance * v[columns].sum(0) / square.clamp_min(1e-30)).clamp_min(0)
    direction = phi @ known / (phi @ m).square().sum(1).mean().sqrt()

    metrics["signal"] = float(direction.square().sum(1).mean().sqrt())

    out = render(gaussians, now.cameras, min(now.rendered, now.picture), colors=(phi @ known)[:, :3])
    alpha = resized(out.alpha[..., None].repeat(1, 1, 1, 3), now.picture)[:, :1]
    wanted = resized(out.rgb, now.picture)
    square = (wanted**2).sum(1, keepdim=True)
    wanted = wanted / (square + 0.01 * square.mean()).clamp_min(1e-30).sqrt()
    against = (grad_pictures * wanted).sum(1, keepdim=True).clamp_min(0)
    make_way = -min(metrics["signal"], 1.0) * alpha**4 * against * wanted
    return Asked(torch.stack([m, v]), direction, make_way, metrics, safe and bool(out.safe.all()))


def pulled(grads: Tensors, direction: Tensor, weight: float) -> Tensors:
    """Gradients of the raw parameters with the policy's."""
    parts = [grads["sh"][:, 0], grads["logit_opacities"][:, None], grads["log_scales"], grads["means"]]
    h = torch.cat(parts, 1) * UNITS
    along = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-12)
    across = h - (h * along).sum(1, keepdim=True) * along
    pull = weight * across.norm(dim=1, keepdim=True) * direction / UNITS
    return grads | {
        "sh": grads["sh"] - pull[:, None, :3],
        "logit_opacities": grads["logit_opacities"] - pull[:, 3],
        "log_scales": grads["log_scales"] - pull[:, 4:7],
        "means": grads["means"] - pull[:, 7:],
    }
