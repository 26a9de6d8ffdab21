"""The latents after a stochastic DDIM step as the policy's action: DDPO3D's own policy gradient.

Notation of docs/method.md: a the action, mu and sigma of the DDIM step, c standardised coefficients of
a - mu in the space that is explored, A_k the advantage of action k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast.guidance.base import Timer, told_of, untimed
from ddpo3d_fast.guidance.exploration import Exploration
from ddpo3d_fast.guidance.judge import Judge
from ddpo3d_fast.guidance.objectives import ACTION_STREAM, Arithmetic, Denoised
from ddpo3d_fast.guidance.policy import clipped_weights, group_spread, importance
from ddpo3d_fast.guidance.scaling import NORMS, RunningSignal, relative_length, score_function_gradient
from ddpo3d_fast.kernels import philox_normal
from ddpo3d_fast.priors.base import Prior
from ddpo3d_fast.rewards import Scores
from ddpo3d_fast.settings import Config
from ddpo3d_fast.step import Tensors

STRIDE = 0.1  # of the training timesteps, from a noisy view to the action
_LEAST = 1e-6  # sigma that is divided by: where it is 0 all actions are one, and none has an advantage


class State(NamedTuple):
    """What the policy knows of a step when it acts."""

    denoised: Denoised  # V noisy views, one noise each
    conditions: dict[str, Tensor]
    pictures: Tensor  # [V, 3, S, S]
    pull: Tensor  # [V, ...] distillation's gradient on the latents
    inputs: Tensors


class LatentPolicy:
    """Moves views towards those of K random DDIM steps whose clean guesses score well."""

    def __init__(
        self, prior: Prior, judge: Judge, arithmetic: Arithmetic, config: Config, timer: Timer = untimed
    ) -> None:
        self.prior, self.judge, self.arithmetic, self.timer = prior, judge, arithmetic, timer
        self.settings, self.seed = config.reward, config.seed
        self.views, self.actions = config.schedule.views, config.schedule.actions(True)
        self.largest = max(config.schedule.picture_scales) * prior.picture_size  # pixels a side
        lowpass = self.settings.policy_exploration == "lowpass"
        self.exploration = Exploration(self.settings.policy_grid if lowpass else 0, prior.codec.patch)
        self.signal = RunningSignal(prior.device)
        self.advantages = torch.zeros(self.views, self.actions, device=prior.device)
        self.means = torch.zeros(0, device=prior.device)  # of the batch of actions, flat; longer than it

    def state(self) -> Tensors:
        """The signal over the steps, and of the last batch of actions all that is not drawn anew."""
        kept = {"latent_signal": self.signal.sums}
        if self.settings.updates > 1:
            kept |= {"latent_advantages": self.advantages, "latent_means": self.means}
        return kept

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave."""
        if self.settings.updates > 1:
            self.means = self.means.new_empty(len(state["latent_means"]))
        for name, tensor in self.state().items():
            tensor.copy_(torch.tensor(state[name]))

    def __call__(self, state: State, strength: Tensor, draws: bool) -> tuple[Tensor, Tensors]:
        """What is added to the gradient on the latents [V, ...], and what to report.

        `strength` [V] weighs the views. With `draws` actions are drawn and judged; without, those of the last
        such step serve again.
        """
        mean, sigma, later = self._ddim_step(state.denoised)
        shape = (len(mean), self.actions, *self.exploration.shape(mean.shape[1:]))
        offset = state.denoised.stream_offset
        drawn = philox_normal(shape, self.seed, ACTION_STREAM, mean.device, offset)
        told = self._judged(state, mean, sigma, later, drawn) if draws else {}
        estimates = [score_function_gradient(*view) for view in zip(self.advantages, drawn, strict=True)]
        ascent, variance = (torch.stack(each) for each in zip(*estimates, strict=True))
        if draws:
            self.signal.add(ascent.flatten(1).square().sum(1), variance.flatten(1).sum(1))
        told["signal"] = self.signal(ascent.numel())
        updated = ascent
        if self.settings.updates > 1:
            updated, more = self._updated(mean, sigma, drawn)
            told |= more
        towards, whole = (self.exploration.fields(each, mean.shape[-1]) for each in (updated, ascent))
        length = relative_length(state.pull, towards, whole)
        scale = NORMS * strength * told["signal"] * length
        return -scale.view(-1, 1, 1, 1) * towards, told

    def _ddim_step(self, denoised: Denoised) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [V, ...] and deviation [V, 1, 1, 1] of the policy, and the timesteps [V] that it leads to."""
        noisy, guesses, levels, timesteps = denoised[:4]
        later = (timesteps - round(STRIDE * len(self.prior.alphas_cumprod))).clamp_min(0)
        after = self.prior.alphas_cumprod[later]
        mean = self.arithmetic.denoise_action(noisy, *guesses[:2], levels, after, outputs=("mean",)).mean
        assert mean is not None
        return mean, ((1 - after) / (1 - levels) * (1 - levels / after)).sqrt().view(-1, 1, 1, 1), later

    def _judged(self, state: State, mean: Tensor, sigma: Tensor, later: Tensor, drawn: Tensor) -> Tensors:
        """Has the actions of coefficients [V, K, ...] judged, and keeps what updates need of them."""
        actions = mean[:, None] + sigma[:, None] * self.exploration.fields(drawn, mean.shape[-1])
        rewards = self._rewards(state, actions.flatten(0, 1), later)
        self.advantages.copy_(self.judge.advantages(rewards.total, state.inputs))
        if self.settings.updates > 1:
            if not len(self.means):  # once, for the largest pictures: graphs know where it lies
                area = (self.largest / state.pictures.shape[-1]) ** 2
                self.means = mean.new_zeros(round(mean.numel() * area))
            self._means(mean).copy_(mean)
        return told_of("reward", rewards) | {"advantage_spread": group_spread(rewards.total).mean()}

    def _updated(self, mean: Tensor, sigma: Tensor, drawn: Tensor) -> tuple[Tensor, Tensors]:
        """[V, ...] the ascent by the last batch of actions where the policy's mean is now `mean`, and what to
        report of how far that is from where they were drawn."""
        moved = (self._means(mean) - mean) / sigma.clamp_min(_LEAST)
        now = drawn + self.exploration.coefficients(moved)[:, None]
        ratios, clip = importance(drawn, now), self.settings.policy_clip
        weights = clipped_weights(self.advantages, ratios, clip)
        return (weights.view(*weights.shape, 1, 1, 1) * now).mean(1), {
            "approximate_kl": 0.5 * ratios.log().square().mean(),
            "clip_fraction": ((ratios - 1).abs() > clip).float().mean(),
        }

    def _rewards(self, state: State, noisy: Tensor, timesteps: Tensor) -> Scores:
        """[V, K] of actions [V K, ...] at timesteps [V], each brought to a clean guess on the prior's
        manifold."""
        steps, conditions = self.settings.policy_ddim_steps, state.conditions
        reached = [
            (timesteps * left // steps).repeat_interleave(self.actions) for left in range(steps, 0, -1)
        ]
        guesses: tuple[Tensor, ...] = ()
        for number, at in enumerate(reached):
            if number:  # a step without noise
                levels = (self.prior.alphas_cumprod[each] for each in (reached[number - 1], at))
                step = self.arithmetic.denoise_action(
                    noisy, *guesses[:2], *levels, eta=0.0, outputs=("mean",)
                )
                assert step.mean is not None
                noisy = step.mean
            with self.timer("predict"):
                guesses = self.prior.predict(noisy, at, conditions)
        return self.judge.rewards(noisy, guesses, self.prior.alphas_cumprod[reached[-1]], state.pictures)

    def _means(self, like: Tensor) -> Tensor:
        """Those of the last batch of actions, which had this shape."""
        return self.means[: like.numel()].view(like.shape)
