"""A whole step of a run in plain torch, in double precision: the specification of the loop.

Written from docs/method.md alone, in its order and words. It shares nothing with the product but the settings
and the prior and reward that it is given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ddpo3d_fast.settings import Config, Scene

from .draws import draw
from .guidance import Score, guidance
from .scene import PARAMETERS, Tensors, densified, outside_hull, relocated, render, seen
from .scene_policy import FIELDS, UNITS, pulled, scene_policy

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-15
COLOR = 0.28209479177387814  # 1 / (2 sqrt(pi))
SETTLED = 0.8  # of the run


class State(NamedTuple):
    """Between two steps: what a checkpoint holds. Float64."""

    gaussians: Tensors
    rewards: Tensor  # [32] of the running baseline, NaN where there is none yet
    screen: (
        Tensor  # [2, N] sum of the lengths of the screen gradients, and of the views that saw the Gaussian
    )
    kept: Tensors  # of the latent and the view policy, by the names that a checkpoint has for it
    estimate: Tensor = torch.zeros(2, FIELDS, len(UNITS), dtype=torch.float64)  # of the scene policy


class Stepped(NamedTuple):
    state: State
    metrics: dict[str, float]
    safe: bool  # whether no pixel's cut-off lies within the rounding of single precision


def rates(scene: Scene, fraction: float) -> dict[str, float]:
    """Learning rates of the parameters."""
    means = max(scene.final_means_rate, 1e-8) ** min(fraction / scene.means_decay, 1)
    others = max(scene.final_rate, 1e-8) ** fraction
    return {
        "means": scene.means_rate * means,
        "quats": scene.quats_rate * others,
        "log_scales": scene.scales_rate * others,
        "logit_opacities": scene.opacities_rate * others,
        "sh": scene.colors_rate * others,
    }


def resized(views: Tensor, size: int) -> Tensor:
    """[V, 3, S, S] pictures of [V, N, N, 3] views: area averages, or bilinear enlargements."""
    pictures, rendered = views.permute(0, 3, 1, 2), views.shape[1]
    if rendered % size == 0:
        return avg_pool2d(pictures, rendered // size)
    return interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False)


def step(state: State, number: int, config: Config, prior: Any, score: Score | None) -> Stepped:
    """Step `number`, from 1, of a run."""
    schedule, scene = config.schedule, config.scene
    views = schedule.views
    now = draw(number, config, prior)

    leaves = {name: state.gaussians[name].clone().requires_grad_() for name in PARAMETERS}
    count = len(leaves["means"])
    offsets = torch.zeros(views, count, 2, dtype=torch.float64, requires_grad=True)
    out = render(leaves, now.cameras, now.rendered, now.backgrounds, offsets)
    pictures = resized(out.rgb, now.picture)
    alpha = resized(out.alpha.detach()[..., None].expand(-1, -1, -1, 3), now.picture)[:, 0]
    guided = guidance(pictures.detach(), alpha, now, number, config, prior, score, state.rewards, state.kept)
    grad_pictures, asked = guided.grad_pictures, None
    if config.reward.policy == "scene" and config.reward.policy_weight:
        assert score is not None
        before = {name: state.gaussians[name] for name in PARAMETERS}
        asked = scene_policy(before, grad_pictures, state.estimate, now, number, config, score, resized)
        grad_pictures = grad_pictures + asked.make_way

    haze = (out.alpha * (1 - out.alpha)).sum() * (now.picture / now.rendered) ** 2
    loss = (pictures * grad_pictures).sum() / views
    loss = loss + scene.alpha_penalty * now.fraction * haze / views
    loss = loss + scene.opacity_penalty * leaves["logit_opacities"].sigmoid().sum()
    *found, moved = torch.autograd.grad(loss, [*leaves.values(), offsets])
    grads, estimate, told, safe = dict(zip(leaves, found, strict=True)), state.estimate, {}, True
    if asked is not None:
        grads = pulled(grads, asked.direction, config.reward.policy_weight)
        estimate, told, safe = asked.estimate, asked.metrics, asked.safe

    gaussians, rate = dict(state.gaussians), rates(scene, now.fraction)
    for name, grad in grads.items():
        m = BETA1 * state.gaussians[f"exp_avg.{name}"] + (1 - BETA1) * grad
        v = BETA2 * state.gaussians[f"exp_avg_sq.{name}"] + (1 - BETA2) * grad**2
        root = (v / (1 - BETA2**number)).sqrt() + EPSILON
        gaussians[name] = state.gaussians[name] - rate[name] * m / (1 - BETA1**number) / root
        gaussians[f"exp_avg.{name}"], gaussians[f"exp_avg_sq.{name}"] = m, v
    limit = (0.5 - 1 / 1024) / COLOR
    gaussians["sh"] = gaussians["sh"].clamp(-limit, limit)

    screen = state.screen
    if scene.densify_every and scene.densify_gradient:
        saw = seen(state.gaussians, now.cameras, now.rendered)
        lengths = (moved * views * now.rendered / 2).norm(dim=2)  # the picture is 2 wide
        screen = screen + torch.stack([(lengths * saw).sum(0), saw.sum(0).double()])
    if scene.densify_every and number % scene.densify_every == 0 and now.fraction < SETTLED:
        outside = outside_hull(gaussians) if now.fraction > scene.carve_from else None
        if scene.densify_gradient:
            mean = screen[0] / screen[1].clamp_min(1)
            gaussians = densified(gaussians, mean, scene, now.generator, outside)
            screen = torch.zeros(2, len(gaussians["means"]), dtype=torch.float64)
        else:
            gaussians = relocated(gaussians, scene, now.generator, outside)
    metrics = (
        guided.metrics
        | told
        | {
            "alpha": float(out.alpha.detach().mean()),
            "timestep": int(now.timesteps.double().mean()),
            "gaussians": len(gaussians["means"]),
        }
    )
    after = State(gaussians, guided.rewards, screen, guided.kept, estimate)
    return Stepped(after, metrics, safe and bool(out.safe.all()))
