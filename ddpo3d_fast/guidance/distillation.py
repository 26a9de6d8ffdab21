"""Score distillation and the policy gradient: from rendered views to the gradient of their loss.

Notation of docs/method.md: z latents of a view, eps the injected noise, z_t the noisy latents, z0^ the clean
guess, A_k the advantage of action k. Both terms are one fused residual of shared noises and UNet evaluations,
so that the noise policy costs one decode and one score a noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast import settings
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
    policy_schedule,
    shuffled,
)
from ddpo3d_fast.kernels import add_noise
from ddpo3d_fast.priors.base import Prior
from ddpo3d_fast.rewards import Reward

DDIM_STRIDE = 0.1  # of the training timesteps, from a noisy view to the DDIM policy's action
Timer = Callable[[str], contextlib.AbstractContextManager[None]]


class Guided(NamedTuple):
    """What a guidance gives back."""

    grad_pictures: Tensor  # [V, 3, H, W] gradient of the loss
    metrics: dict[str, Tensor]  # one number each, on the device: reading one waits for it


class ScoreDistillation:
    """The guidance that a prior gives to views, weighted by what the reward thinks of the prior's guesses."""

    def __init__(
        self,
        prior: Prior,
        prompt: Any,
        text: str,
        distillation: settings.Distillation,
        reward: settings.Reward,
        scorer: Reward | None,
        seed: int,
        noises: int,
        timer: Timer = lambda part: contextlib.nullcontext(),
    ) -> None:
        """`scorer` may be None where the policy weight is 0; `timer(part)` is entered around each part."""
        self.prior, self.prompt, self.text, self.scorer = prior, prompt, text, scorer
        self.settings, self.policy, self.seed, self.noises = distillation, reward, seed, noises
        self.timer = timer
        self.baseline = RunningBaseline(device=prior.device)
        self.objective = OBJECTIVES[distillation.residual]
        self.arithmetic = Arithmetic(
            prediction_type=prior.prediction_type,
            clip=prior.clip,
            train_timesteps=len(prior.alphas_cumprod),
            guidance_scale=distillation.guidance_scale,
            guidance_rescale=distillation.guidance_rescale,
            seed=seed,
        )

    def inputs(self, cameras: Tensor, timesteps: Tensor, step: int) -> tuple[dict[str, Tensor], bool]:
        """What a step's guidance reads besides the pictures, on the CPU, and whether the policy acts in it.

        Args:
            cameras: [V, 3] azimuth and elevation in radians, grey level of the background.
            timesteps: [V] int64, on the CPU: whether the policy acts at them is decided without a wait.
            step: counts the steps; the noise is a function of the seed and this number.
        """
        strength = self.policy.policy_weight * policy_schedule(
            timesteps / len(self.prior.alphas_cumprod), self.policy.policy_max_timestep
        )
        inputs = {
            "seen_from": cameras,
            "timesteps": timesteps,
            "strength": strength,
            "stream_offset": torch.tensor([2 * step]),  # a stream for the noise, one for the action
        }
        if self.policy.shuffle_advantages:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            inputs["lots"] = torch.rand(len(timesteps), self.noises, generator=generator)
        return inputs, bool((strength > 0).any())

    def __call__(self, pictures: Tensor, inputs: dict[str, Tensor], acting: bool) -> Guided:
        """One step's guidance: device work alone, which a CUDA graph can hold.

        Args:
            pictures: [V, 3, H, W] in [0, 1], of a size that the prior takes and on its device.
            inputs, acting: what `inputs` gave, the tensors moved to the device.
        """
        prior, actions = self.prior, self.noises
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
        return Guided(pull_back(grad), metrics)

    def _ddim_step(
        self,
        pictures: Tensor,
        latents: Tensor,
        timesteps: Tensor,
        conditions: dict[str, Tensor],
        strength: Tensor,
        inputs: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """SDS from one noise a view; K actions z_t' from its DDIM step, each judged by its clean guess."""
        prior, actions = self.prior, self.noises
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
        views = len(pictures)
        if self.policy.reward_of == "render":
            with self.timer("reward"):
                return self.scorer.score(pictures, [self.text] * views)[:, None].expand(views, self.noises)
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
        return scores.view(views, self.noises)

    def _advantages(self, rewards: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        advantages = (
            group_advantages(rewards)
            if self.policy.baseline == "group"
            else self.baseline.advantages(rewards)
        )
        if self.policy.shuffle_advantages:
            advantages = shuffled(advantages, inputs["lots"])
        return advantages
