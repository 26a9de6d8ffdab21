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

from ddpo3d_fast.guidance.base import Gradient, Guidance, Seen, Timer, told_of, untimed
from ddpo3d_fast.guidance.judge import Judge
from ddpo3d_fast.guidance.latent_policy import LatentPolicy, State
from ddpo3d_fast.guidance.objectives import OBJECTIVES, Arithmetic, Denoised, Noising, noised
from ddpo3d_fast.guidance.policy import RunningBaseline, group_spread, is_due, lots, policy_schedule
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
        self.seed, self.schedule, self.policy = config.seed, config.schedule, config.reward
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
            inputs["lots"] = lots(self.seed, first, len(step.timesteps), self.schedule.actions(True))
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
        compared = acts and self.policy.reward_of == "action"
        # The latent policy's actions share their view's noise.
        noises = 1 if self.latent and acts else self.schedule.actions(compared)
        denoised = self._denoised(latents, timesteps, conditions, offset, noises)
        advantages, told = torch.zeros(len(pictures), noises, device=pictures.device), Tensors()
        if acts and not self.latent:
            rewards = self.judge.rewards(denoised.noisy, denoised.guesses, denoised.levels, pictures)
            advantages = self.judge.advantages(rewards.total, inputs)
            told = told_of("reward", rewards) | {"advantage_spread": group_spread(rewards.total).mean()}
        w = self.objective.weight(self.prior.alphas_cumprod[timesteps])
        weight = w[:, None] * (1 + strength[:, None] * advantages) / noises
        with self.timer("residual"):
            grad = self.objective.residual(denoised, weight.flatten(), self.arithmetic)
        if acts and self.latent:
            state = State(denoised, conditions, pictures, grad, inputs)
            more, told = self.latent(state, strength, draws=seen.variant == "draw")
            grad = grad + more
        energy = grad.square().mean()
        metrics = {"loss": 0.5 * energy, "residual": energy.sqrt()}
        return Gradient(pull_back(grad), metrics=metrics | told)

    def _denoised(
        self, latents: Tensor, timesteps: Tensor, conditions: dict[str, Tensor], offset: Tensor, noises: int
    ) -> Denoised:
        """Latents [V, ...] at timesteps [V], each with so many noises, and what the prior makes of them."""

        def predict(noisy: Tensor, timesteps: Tensor, groups: slice) -> tuple[Tensor, ...]:
            chosen = {name: tensor[groups] for name, tensor in conditions.items()}
            with self.timer("predict"):
                return self.prior.predict(noisy, timesteps, chosen)

        per_item, alphas = timesteps.repeat_interleave(noises), self.prior.alphas_cumprod
        noising = Noising(latents, alphas[per_item], per_item, alphas, self.seed, offset, noises, predict)
        made = noised(self.objective, noising, self.arithmetic)
        return Denoised.of(made, predict(made.noisy, per_item, slice(None)))
