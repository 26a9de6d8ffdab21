"""Score distillation and the policies of its noises: from rendered views to the gradient of their loss.

Notation of docs/method.md: z latents of a view, eps the injected noise, z_t the noisy latents, z0^ the clean
guess, A_k the advantage of action k. Distillation and policy share noises and UNet evaluations; the noise
policy is one fused residual with it, and costs one decode and one score a noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddpo3d_fast.guidance.base import Gradient, Guidance, Seen, Timer, untimed
from ddpo3d_fast.guidance.judge import Judge
from ddpo3d_fast.guidance.latent_policy import LatentPolicy, State
from ddpo3d_fast.guidance.objectives import NOISE_STREAM, OBJECTIVES, Arithmetic, Denoised
from ddpo3d_fast.guidance.policy import RunningBaseline, group_spread, is_due, policy_schedule
from ddpo3d_fast.kernels import add_noise
from ddpo3d_fast.priors.base import Prior
from ddpo3d_fast.rewards import Reward
from ddpo3d_fast.settings import Config
from ddpo3d_fast.step import Step, Tensors, drawn_by


class ScoreDistillation(Guidance):
    """The guidance that a prior gives to views, and what the reward thinks of the prior's guesses."""

    def __init__(
        self, prior: Prior, prompt: Any, scorer: Reward | None, config: Config, timer: Timer = untimed
    ) -> None:
        """`prompt` is what the prior has understood; `scorer` may be None where the policy weight is 0."""
        self.prior, self.prompt, self.timer = prior, prompt, timer
        self.seed, self.noises, self.policy = config.seed, config.schedule.noises, config.reward
        self.objective = OBJECTIVES[config.distillation.residual]
        self.arithmetic = Arithmetic(
            prediction_type=prior.prediction_type,
            clip=prior.clip,
            train_timesteps=len(prior.alphas_cumprod),
            guidance_scale=config.distillation.guidance_scale,
            guidance_rescale=config.distillation.guidance_rescale,
            seed=self.seed,
        )
        self.judge = Judge(prior, scorer, self.arithmetic, config, timer)
        self.latent = None
        if self.policy.policy == "latent" and self.policy.policy_weight:
            self.latent = LatentPolicy(prior, self.judge, self.arithmetic, config, timer)

    def strength(self, step: Step) -> Tensor:
        """[V] weight of the policy gradient in the step's views, on the CPU."""
        fractions = step.timesteps / len(self.prior.alphas_cumprod)
        weight = self.policy.policy_weight * is_due(step, self.policy.policy_every, self.policy.updates)
        return weight * policy_schedule(fractions, self.policy.policy_max_timestep)

    def variant(self, step: Step) -> str:
        """What the policy does: "nothing"; "draw", actions that it has judged; "update", by those of the step
        before. Decided without a wait."""
        if not (self.strength(step) > 0).any():
            return "nothing"
        return "draw" if drawn_by(step.number, self.policy.updates) == step.number else "update"

    def inputs(self, step: Step) -> Tensors:
        """The policy's strength, and what makes the step's noises: a function of the seed and the number of
        the step that draws them."""
        first = drawn_by(step.number, self.policy.updates)
        inputs = {
            "strength": self.strength(step),
            "stream_offset": torch.tensor([2 * first]),  # a stream for the noise, one for the action
        }
        if self.policy.shuffle_advantages:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first)
            inputs["lots"] = torch.rand(len(step.timesteps), self.noises, generator=generator)
        return inputs

    def state(self) -> Tensors:
        """The window of the run's last rewards, and what the latent policy keeps."""
        kept = {"rewards": self.judge.baseline.window}
        return kept if self.latent is None else kept | self.latent.state()

    def load(self, state: Mapping[str, Any]) -> None:
        self.judge.baseline = RunningBaseline(state["rewards"], self.prior.device)
        if self.latent is not None:
            self.latent.load(state)

    def __call__(self, seen: Seen, so_far: Gradient) -> Gradient:
        pictures, inputs, acts = seen.pictures, seen.inputs, seen.variant != "nothing"
        timesteps, strength, offset = inputs["timesteps"], inputs["strength"], inputs["stream_offset"]
        with self.timer("predict"):
            conditions = self.prior.conditions(self.prompt, inputs["seen_from"])
        latents, pull_back = self.prior.codec.encode_with_vjp(pictures)
        levels = self.prior.alphas_cumprod[timesteps]
        noises = 1 if self.latent and acts else self.noises  # its actions share their view's noise
        per_item, level_of = timesteps.repeat_interleave(noises), levels.repeat_interleave(noises)
        noisy = add_noise(latents, level_of, self.seed, NOISE_STREAM, noises, stream_offset=offset)
        with self.timer("predict"):
            guesses = self.prior.predict(noisy, per_item, conditions)
        denoised, told = Denoised(noisy, guesses, level_of, per_item, offset, noises), Tensors()
        advantages = torch.zeros(len(pictures), noises, device=pictures.device)
        if acts and not self.latent:
            rewards = self.judge.rewards(noisy, guesses, level_of, pictures)
            advantages = self.judge.advantages(rewards, inputs)
            told = {"reward": rewards.mean(), "advantage_spread": group_spread(rewards).mean()}
        weight = self.objective.weight(levels)[:, None] * (1 + strength[:, None] * advantages) / noises
        with self.timer("residual"):
            grad = self.objective.residual(denoised, weight.flatten(), self.arithmetic)
        if acts and self.latent:
            state = State(denoised, conditions, pictures, grad, inputs)
            more, told = self.latent(state, strength, draws=seen.variant == "draw")
            grad = grad + more
        energy = grad.square().mean()
        metrics = {"loss": 0.5 * energy, "residual": energy.sqrt()}
        return Gradient(pull_back(grad), metrics=metrics | told)
