"""Score distillation and the policy gradient: from rendered views to the gradient of their loss.

Notation of docs/method.md: z latents of a view, eps the injected noise, z_t the noisy latents, z0^ the clean
guess, A_k the advantage of action k. Both terms are one fused residual of shared noises and UNet evaluations,
so that the noise policy costs one decode and one score a noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddpo3d_fast.guidance.base import Gradient, Guidance, Seen, Timer, untimed
from ddpo3d_fast.guidance.objectives import (
    ACTION_STREAM,
    NOISE_STREAM,
    OBJECTIVES,
    Arithmetic,
    Denoised,
)
from ddpo3d_fast.guidance.policy import (
    RunningBaseline,
    group_advantages,
    group_spread,
    is_due,
    policy_schedule,
    shuffled,
)
from ddpo3d_fast.kernels import add_noise
from ddpo3d_fast.priors.base import Prior
from ddpo3d_fast.rewards import Reward
from ddpo3d_fast.settings import Config
from ddpo3d_fast.step import Step, Tensors

DDIM_STRIDE = 0.1  # of the training timesteps, from a noisy view to the DDIM policy's action


class ScoreDistillation(Guidance):
    """The guidance that a prior gives to views, weighted by what the reward thinks of the prior's guesses."""

    def __init__(
        self, prior: Prior, prompt: Any, scorer: Reward | None, config: Config, timer: Timer = untimed
    ) -> None:
        """`prompt` is what the prior has understood; `scorer` may be None where the policy weight is 0."""
        self.prior, self.prompt, self.scorer, self.timer = prior, prompt, scorer, timer
        self.text, self.seed, self.schedule = config.prompt, config.seed, config.schedule
        self.settings, self.policy = config.distillation, config.reward
        self.baseline = RunningBaseline(device=prior.device)
        self.objective = OBJECTIVES[self.settings.residual]
        self.arithmetic = Arithmetic(
            prediction_type=prior.prediction_type,
            clip=prior.clip,
            train_timesteps=len(prior.alphas_cumprod),
            guidance_scale=self.settings.guidance_scale,
            guidance_rescale=self.settings.guidance_rescale,
            seed=self.seed,
        )

    def strength(self, step: Step) -> Tensor:
        """[V] weight of the policy gradient in the step's views, on the CPU."""
        fractions = step.timesteps / len(self.prior.alphas_cumprod)
        weight = self.policy.policy_weight * is_due(step, self.policy.policy_every)
        return weight * policy_schedule(fractions, self.policy.policy_max_timestep)

    def variant(self, step: Step) -> bool:
        """Whether the policy acts: decided without a wait."""
        return bool((self.strength(step) > 0).any())

    def inputs(self, step: Step) -> Tensors:
        """The policy's strength, and what makes the step's noises: a function of the seed and its number."""
        inputs = {
            "strength": self.strength(step),
            "stream_offset": torch.tensor([2 * step.number]),  # a stream for the noise, one for the action
        }
        if self.policy.shuffle_advantages:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step.number)
            inputs["lots"] = torch.rand(len(step.timesteps), self.schedule.actions(True), generator=generator)
        return inputs

    def state(self) -> Tensors:
        """The window of the run's last rewards."""
        return {"rewards": self.baseline.window}

    def load(self, state: Mapping[str, Any]) -> None:
        self.baseline = RunningBaseline(state["rewards"], self.prior.device)

    def __call__(self, seen: Seen, so_far: Gradient) -> Gradient:
        pictures, inputs, acting = seen.pictures, seen.inputs, seen.variant
        prior = self.prior
        actions = self.schedule.actions(bool(acting) and self.policy.reward_of == "action")
        timesteps, strength = inputs["timesteps"], inputs["strength"]
        with self.timer("predict"):
            conditions = prior.conditions(self.prompt, inputs["seen_from"])
        latents, pull_back = prior.codec.encode_with_vjp(pictures)
        levels = prior.alphas_cumprod[timesteps]
        if self.policy.policy == "ddim" and acting:
            grad, rewards = self._ddim_step(pictures, latents, timesteps, conditions, strength, inputs)
        else:
            per_action, per_item = levels.repeat_interleave(actions), timesteps.repeat_interleave(actions)
            offset = inputs["stream_offset"]
            noisy = add_noise(latents, per_action, self.seed, NOISE_STREAM, actions, stream_offset=offset)
            with self.timer("predict"):
                guesses = prior.predict(noisy, per_item, conditions)
            rewards = advantages = torch.zeros(len(pictures), actions, device=pictures.device)
            if acting:
                rewards = self._rewards(noisy, guesses, per_action, pictures)
                advantages = self._advantages(rewards, inputs)
            weight = self.objective.weight(levels)[:, None] * (1 + strength[:, None] * advantages) / actions
            with self.timer("residual"):
                denoised = Denoised(noisy, guesses, per_action, per_item, offset, actions)
                grad = self.objective.residual(denoised, weight.flatten(), self.arithmetic)
        energy = grad.square().mean()
        metrics = {"loss": 0.5 * energy, "residual": energy.sqrt()}
        if acting:
            metrics |= {"reward": rewards.mean(), "advantage_spread": group_spread(rewards).mean()}
        return Gradient(pull_back(grad), metrics=metrics)

    def _ddim_step(
        self,
        pictures: Tensor,
        latents: Tensor,
        timesteps: Tensor,
        conditions: dict[str, Tensor],
        strength: Tensor,
        inputs: Tensors,
    ) -> tuple[Tensor, Tensor]:
        """SDS from one noise a view; K actions z_t' from its DDIM step, each judged by its clean guess."""
        prior, actions = self.prior, self.schedule.actions(True)
        levels, offset = prior.alphas_cumprod[timesteps], inputs["stream_offset"]
        noisy = add_noise(latents, levels, self.seed, NOISE_STREAM, stream_offset=offset)
        with self.timer("predict"):
            guesses = prior.predict(noisy, timesteps, conditions)
        with self.timer("residual"):
            denoised = Denoised(noisy, guesses, levels, timesteps, offset, 1)
            grad = self.objective.residual(denoised, self.objective.weight(levels), self.arithmetic)
        guesses = guesses[:2]  # the policy's step has one guidance, whatever the residual's
        later = (timesteps - round(DDIM_STRIDE * len(prior.alphas_cumprod))).clamp_min(0)
        repeated = [tensor.repeat_interleave(actions, 0) for tensor in (noisy, *guesses, levels, later)]
        noisy_k, cond_k, uncond_k, levels_k, later_k = repeated
        later_levels = torch.maximum(prior.alphas_cumprod[later_k], levels_k)
        action = self.arithmetic.denoise_action(
            noisy_k,
            cond_k,
            uncond_k,
            levels_k,
            later_levels,
            stream=ACTION_STREAM,
            outputs=("action",),
            stream_offset=offset,
        ).action
        assert action is not None
        with self.timer("predict"):
            reached = prior.predict(action, later_k, conditions)
        rewards = self._rewards(action, reached, later_levels, pictures)
        advantages = self._advantages(rewards, inputs)
        # Natural-gradient scaling: grad log pi = sqrt(abar') n / sigma, times sigma.
        weight = strength[:, None] * advantages * later_levels.view(-1, actions).sqrt() / actions
        with self.timer("residual"):
            grad = grad + self.arithmetic.score_residual(
                noisy_k,
                cond_k,
                uncond_k,
                levels_k,
                torch.zeros_like(levels_k),
                noise_stream=NOISE_STREAM,
                actions=actions,
                action_weight=weight.flatten(),
                action_stream=ACTION_STREAM,
                stream_offset=offset,
            )
        return grad, rewards

    def _rewards(
        self, noisy: Tensor, guesses: tuple[Tensor, ...], levels: Tensor, pictures: Tensor
    ) -> Tensor:
        """[V, K] rewards of the clean guesses that the actions lead to, or of the rendered views."""
        assert self.scorer is not None, "a policy gradient needs a scorer"
        views, actions = len(pictures), len(noisy) // len(pictures)
        if self.policy.reward_of == "render":
            with self.timer("reward"):
                return self.scorer.score(pictures, [self.text] * views)[:, None].expand(views, actions)
        with self.timer("residual"):
            clean = self.arithmetic.denoise_action(
                noisy,
                guesses[0],
                guesses[1],
                levels,
                levels,
                outputs=("clean",),
                guidance_scale=self.policy.reward_guidance_scale or self.settings.guidance_scale,
            ).clean
        assert clean is not None
        with self.timer("reward"):
            scores = self.scorer.score(self.prior.codec.decode(clean).clamp(0, 1), [self.text] * len(clean))
        return scores.view(views, actions)

    def _advantages(self, rewards: Tensor, inputs: Tensors) -> Tensor:
        advantages = (
            group_advantages(rewards)
            if self.policy.baseline == "group"
            else self.baseline.advantages(rewards)
        )
        if self.policy.shuffle_advantages:
            advantages = shuffled(advantages, inputs["lots"])
        return advantages
