"""The rendered view as the policy's action: a policy gradient for any reward, on the picture.

Notation of docs/method.md: c coefficients of smooth fields over a view, the action; U the fields; A_k the
advantage of pair k. Of the reward scores alone are asked, and of the prior nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddpo3d_fast.guidance.base import Gradient, Guidance, Seen, Timer, told_of, untimed
from ddpo3d_fast.guidance.exploration import Exploration
from ddpo3d_fast.guidance.objectives import ACTION_STREAM
from ddpo3d_fast.guidance.policy import is_due, lots, pair_advantages, shuffled
from ddpo3d_fast.guidance.scaling import NORMS, RunningSignal, relative_length, score_function_gradient
from ddpo3d_fast.kernels import philox_normal
from ddpo3d_fast.resampling import scaled
from ddpo3d_fast.rewards import Reward, Scores, scores_of
from ddpo3d_fast.settings import Config
from ddpo3d_fast.step import Step, Tensors


class ViewPolicy(Guidance):
    """Moves each view along smooth fields, and towards what scores better."""

    def __init__(
        self,
        scorer: Reward,
        config: Config,
        device: torch.device | str = "cpu",
        timer: Timer = untimed,
    ) -> None:
        self.scorer, self.text, self.seed, self.timer = scorer, config.prompt, config.seed, timer
        self.settings = config.reward
        self.exploration = Exploration(self.settings.policy_grid)
        self.signal = RunningSignal(device)

    def variant(self, step: Step) -> bool:
        """Whether it acts: decided without a wait."""
        return is_due(step, self.settings.policy_every)

    def inputs(self, step: Step) -> Tensors:
        """What makes the step's actions: a function of the seed and its number."""
        inputs = {"view_offset": torch.tensor([2 * step.number])}
        if self.settings.shuffle_advantages:
            inputs["view_lots"] = lots(self.seed, step.number, 1, self.settings.policy_pairs)
        return inputs

    def state(self) -> Tensors:
        """The signal over the steps."""
        return {"view_signal": self.signal.sums}

    def __call__(self, seen: Seen, so_far: Gradient) -> Gradient:
        if not seen.variant:
            return Gradient()
        assert so_far.pictures is not None, "the view policy is relative to a gradient"
        pictures, views = seen.pictures, len(seen.pictures)
        shape = (self.settings.policy_pairs, *self.exploration.shape(pictures.shape[1:]))
        offset = seen.inputs["view_offset"]
        actions = philox_normal(shape, self.seed, ACTION_STREAM, pictures.device, offset)
        coverage = scaled(seen.alpha.nan_to_num()[:, None], pictures.shape[-1])
        rewards = self._rewards(pictures, actions, coverage)
        advantages = pair_advantages(rewards.total)
        if self.settings.shuffle_advantages:
            advantages = shuffled(advantages[None], seen.inputs["view_lots"])[0]
        estimates = [
            score_function_gradient(advantages[view::views], actions[view::views]) for view in range(views)
        ]
        ascent, variance = (torch.stack(each) for each in zip(*estimates, strict=True))
        self.signal.add(ascent.flatten(1).square().sum(1), variance.flatten(1).sum(1))
        signal = self.signal(ascent.numel())
        towards = coverage * self.exploration.fields(ascent, pictures.shape[-1])
        length = relative_length(so_far.pictures, towards, towards)
        scale = NORMS * self.settings.policy_weight * signal * length
        told = told_of("reward", rewards) | {"advantage_spread": rewards.total.std(), "signal": signal}
        return Gradient(-scale.view(-1, 1, 1, 1) * towards, metrics=told)

    def _rewards(self, pictures: Tensor, actions: Tensor, coverage: Tensor) -> Scores:
        """[K, 2] rewards of views moved by each action, and by its opposite; pair k moves view k mod V where
        its object [V, 1, S, S] is."""
        view = torch.arange(len(actions), device=pictures.device) % len(pictures)
        fields = self.exploration.fields(actions, pictures.shape[-1])
        moves = self.settings.policy_sigma * coverage[view] * fields
        moved = torch.stack([pictures[view] + moves, pictures[view] - moves], 1).flatten(0, 1).clamp(0, 1)
        with self.timer("reward"):
            scores = scores_of(self.scorer, moved, [self.text] * len(moved))
        return scores._replace(total=scores.total.view(-1, 2))
