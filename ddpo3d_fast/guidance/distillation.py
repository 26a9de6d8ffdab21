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

from ddpo3d_fast.guidance.base import Gradient, Guidance, Seen, Timer, told_of, untimed
from ddpo3d_fast.guidance.objectives import (
    ACTION_STREAM,
    NOISE_STREAM,
    OBJECTIVES,
    Arithmetic,
    Denoised,
    Noising,
    noised,
)
from ddpo3d_fast.guidance.policy import (
    RunningBaseline,
    group_advantages,
    group_spread,
    is_due,
    policy_schedule,
    ranked_advantages,
    shuffled,
)
from ddpo3d_fast.priors.base import Prior
from ddpo3d_fast.rewards import Reward, Scores, scores_of
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
            denoised = self._denoised(latents, timesteps, conditions, inputs, actions)
            advantages = torch.zeros(len(pictures), actions, device=pictures.device)
            if acting:
                rewards = self._rewards(denoised.noisy, denoised.guesses, denoised.levels, pictures)
                advantages = self._advantages(rewards.total, inputs)
            weight = self.objective.weight(levels)[:, None] * (1 + strength[:, None] * advantages) / actions
            with self.timer("residual"):
                grad = self.objective.residual(denoised, weight.flatten(), self.arithmetic)
        energy = grad.square().mean()
        metrics = {"loss": 0.5 * energy, "residual": energy.sqrt()}
        if acting:
            metrics |= told_of("reward", rewards)
            metrics["advantage_spread"] = group_spread(rewards.total).mean()
        return Gradient(pull_back(grad), metrics=metrics)

    def _denoised(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditions: dict[str, Tensor],
        inputs: Tensors,
        noises: int,
    ) -> Denoised:
        """Latents [V, ...] at timesteps [V], each with so many noises, and what the prior makes of them."""

        def predict(noisy: Tensor, timesteps: Tensor, groups: slice) -> tuple[Tensor, ...]:
            chosen = {name: tensor[groups] for name, tensor in conditions.items()}
            with self.timer("predict"):
                return self.prior.predict(noisy, timesteps, chosen)

        per_item, alphas = timesteps.repeat_interleave(noises), self.prior.alphas_cumprod
        offset = inputs["stream_offset"]
        noising = Noising(latents, alphas[per_item], per_item, alphas, self.seed, offset, noises, predict)
        made = noised(self.objective, noising, self.arithmetic)
        return Denoised.of(made, predict(made.noisy, per_item, slice(None)))

    def _ddim_step(
        self,
        pictures: Tensor,
        latents: Tensor,
        timesteps: Tensor,
        conditions: dict[str, Tensor],
        strength: Tensor,
        inputs: Tensors,
    ) -> tuple[Tensor, Scores]:
        """SDS from one noise a view; K actions z_t' from its DDIM step, each judged by its clean guess."""
        prior, actions = self.prior, self.schedule.actions(True)
        denoised = self._denoised(latents, timesteps, conditions, inputs, 1)
        noisy, guesses, levels, offset = *denoised[:3], inputs["stream_offset"]
        with self.timer("residual"):
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
        advantages = self._advantages(rewards.total, inputs)
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
    ) -> Scores:
        """[V, K] rewards of the clean guesses that the actions lead to, or of the rendered views."""
        assert self.scorer is not None, "a policy gradient needs a scorer"
        views, actions = len(pictures), len(noisy) // len(pictures)
        if self.policy.reward_of == "render":
            with self.timer("reward"):
                scores = scores_of(self.scorer, pictures, [self.text] * views)
            return scores._replace(total=scores.total[:, None].expand(views, actions))
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
            guessed = self.prior.codec.decode(clean).clamp(0, 1)
            scores = scores_of(self.scorer, guessed, [self.text] * len(clean))
        return scores._replace(total=scores.total.view(views, actions))

    def _advantages(self, rewards: Tensor, inputs: Tensors) -> Tensor:
        compare = {
            "group": group_advantages,
            "running": self.baseline.advantages,
            "rewardsds": ranked_advantages,
        }
        advantages = compare[self.policy.baseline](rewards)
        if self.policy.shuffle_advantages:
            advantages = shuffled(advantages, inputs["lots"])
        return advantages
