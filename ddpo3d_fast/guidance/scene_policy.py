"""The scene as the policy's action: a policy gradient for any reward, without the prior's help.

Notation of docs/method.md: c coefficients of smooth fields over the scene, the action; phi the fields; A_k
the advantage of pair k. Of the reward scores alone are asked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpo3d_fast.guidance.base import Gradient, Guidance, Movable, Seen, Timer, told_of, untimed
from ddpo3d_fast.guidance.objectives import ACTION_STREAM
from ddpo3d_fast.guidance.policy import is_due, lots, pair_advantages, shuffled
from ddpo3d_fast.guidance.scaling import DECAY, NONE, beyond_chance, score_function_gradient
from ddpo3d_fast.kernels import philox_normal
from ddpo3d_fast.rewards import Reward, Scores, scores_of
from ddpo3d_fast.settings import Config
from ddpo3d_fast.step import Step, Tensors

BANDS = (1.5, 6.0, 24.0)
"""Fourier features from coarse to fine: the deviations of their wave vectors, in radians a unit"""
WAVES = 4  # a band
FIELDS = 1 + 2 * WAVES * len(BANDS)  # a constant, the cosines of all waves, and their sines
BAND_OF = (0, *2 * [band for band in range(len(BANDS)) for _ in range(WAVES)])  # the constant is coarse
NORMS = 1.0  # of what the views pull a Gaussian with, for weight 1 and an estimate without chance
FAINT = 0.01  # of the mean square of a pixel's wanted colour: what is too little to have a direction
SOLID = 4  # power of a pixel's alpha with which the others make way


class ScenePolicy(Guidance):
    """Moves the scene along smooth random fields, the same in all views, and towards what scores better."""

    def __init__(
        self,
        scorer: Reward,
        config: Config,
        channels: Tensor,
        device: torch.device | str = "cpu",
        timer: Timer = untimed,
    ) -> None:
        """`channels` [C]: 1 for those of the scene's channels that `policy_moves` names, 0 for the others."""
        self.scorer, self.text, self.seed, self.timer = scorer, config.prompt, config.seed, timer
        self.weight, self.pairs = config.reward.policy_weight, config.reward.policy_pairs
        self.shuffles, self.every = config.reward.shuffle_advantages, config.reward.policy_every
        self.moves = config.reward.policy_moves
        self.channels, self.bands = channels.to(device), bands(device)
        deviations = torch.tensor(BANDS, device=device).repeat_interleave(WAVES)
        self.waves = deviations * philox_normal((3, len(deviations)), self.seed, ACTION_STREAM, device)
        self.mean, self.variance = torch.zeros(2, FIELDS, len(channels), device=device).unbind()

    def variant(self, step: Step) -> bool:
        """Whether it asks the reward: decided without a wait."""
        return is_due(step, self.every)

    def inputs(self, step: Step) -> Tensors:
        """What makes the step's actions: a function of the seed and its number."""
        inputs = {"scene_offset": torch.tensor([2 * step.number])}
        if self.shuffles:
            inputs["scene_lots"] = lots(self.seed, step.number, 1, self.pairs)
        return inputs

    def state(self) -> Tensors:
        """The estimate's mean over the steps, and its variance."""
        return {"scene_policy_mean": self.mean, "scene_policy_variance": self.variance}

    def __call__(self, seen: Seen, so_far: Gradient) -> Gradient:
        assert seen.scene is not None, "the scene policy moves a scene"
        phi = fields(seen.scene.positions, self.waves) * seen.scene.present
        metrics = self._estimate(seen.scene, phi, seen.inputs) if seen.variant else {}
        known = self.mean * signal(self.mean, self.variance, self.bands)
        per_row = seen.scene.present.sum().clamp_min(1).sqrt()
        pull = phi @ known / ((phi @ self.mean).norm() / per_row + NONE)
        share = pull.norm() / per_row
        return Gradient(
            pictures=self._way_made(seen.scene, phi @ known, so_far.pictures, share),
            scene=-NORMS * self.weight * pull,
            metrics=metrics | {"signal": share},
        )

    def _way_made(
        self, scene: Movable, wanted: Tensor, pictures: Tensor | None, share: Tensor
    ) -> Tensor | None:
        """[V, 3, S, S] what takes from a gradient of pictures, that of the other guidances, the part against
        the colours `wanted` [R, C], where there is solid object (gradient surgery, arXiv 2001.06782).

        Where it stayed, distillation could not put the colour right and made the object transparent instead.
        """
        if pictures is None:
            return None
        shown = scene.shown(torch.cat([wanted[:, :3], scene.present], 1))
        direction, alpha = shown[:, :3], shown[:, 3:].clamp(0, 1)
        square = direction.square().sum(1, keepdim=True)
        # Almost of length 1, but where next to nothing is wanted: there its sign would be rounding.
        direction = direction / (square + FAINT * square.mean() + NONE).sqrt()
        against = (pictures * direction).sum(1, keepdim=True).clamp_min(0)
        return -share.clamp(0, 1) * alpha**SOLID * against * direction

    def _estimate(self, scene: Movable, phi: Tensor, inputs: Tensors) -> Tensors:
        """Adds a step's pairs to what is known; returns what to report of them."""
        actions = philox_normal(
            (self.pairs, *self.mean.shape), self.seed, ACTION_STREAM, phi.device, inputs["scene_offset"]
        )
        actions = actions * self.channels
        scores = self._rewards(scene, phi, actions)
        rewards = scores.total.view(-1, 2)
        advantages = pair_advantages(rewards)
        if self.shuffles:
            advantages = shuffled(advantages[None], inputs["scene_lots"])[0]
        ascent, variance = score_function_gradient(advantages, actions)
        self.mean.lerp_(ascent, 1 - DECAY)
        self.variance.mul_(DECAY**2).add_((1 - DECAY) ** 2 * variance)
        return told_of("reward", scores) | {"advantage_spread": rewards.std()}

    def _rewards(self, scene: Movable, phi: Tensor, actions: Tensor) -> Scores:
        """[2 K] rewards of the scene moved by each action, and by its opposite; pair k as view k mod V sees
        it."""
        with self.timer("render"):
            pictures = scene.pictures_of(phi, actions, self.moves).flatten(0, 1)
        with self.timer("reward"):
            return scores_of(self.scorer, pictures, [self.text] * len(pictures))


def fields(positions: Tensor, waves: Tensor) -> Tensor:
    """[R, 1 + 2 W] smooth functions of positions [R, 3]: a constant, then the cosines and sines of W plane
    waves [3, W], in radians a unit. Their squares add up to 1 everywhere."""
    phases = positions @ waves
    every = torch.cat([torch.ones_like(phases[:, :1]), phases.cos(), phases.sin()], 1)
    return every / math.sqrt(1 + waves.shape[1])


def bands(device: torch.device | str = "cpu") -> Tensor:
    """[F, B] 1 where a field is of a band, else 0."""
    return torch.nn.functional.one_hot(torch.tensor(BAND_OF)).float().to(device)


def signal(mean: Tensor, variance: Tensor, inside: Tensor) -> Tensor:
    """[F, C] what of an estimate [F, C] of this variance is no chance, 0 to 1, the same for the fields of a
    band in a channel, so that a channel gets nothing in a band in which the reward says nothing of it.
    `inside` are the `bands`."""
    square, chance = inside.T @ mean.square(), inside.T @ variance
    return inside @ beyond_chance(square, chance, inside.sum(0)[:, None])
