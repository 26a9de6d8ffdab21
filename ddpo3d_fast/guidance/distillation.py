"""Score distillation and the policy gradient: from rendered views to the gradient of their loss.

Notation of docs/method.md: z latents of a view, eps the injected noise, z_t the noisy latents, z0^ the clean
guess, A_k the advantage of action k. Both terms are one fused residual of shared noises and UNet evaluations,
so that the noise policy costs one decode and one score a noise.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast import config
from ddpo3d_fast.guidance.policy import RunningBaseline, group_advantages, policy_schedule, shuffled
from ddpo3d_fast.kernels import add_noise, denoise_action, score_residual
from ddpo3d_fast.priors import EmbeddedPrior
from ddpo3d_fast.priors.embedded import Prompt
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
        prior: EmbeddedPrior,
        prompt: Prompt,
        text: str,
        distillation: config.Distillation,
        reward: config.Reward,
        scorer: Reward | None,
        seed: int,
        noises: int,
        timer: Timer = lambda part: contextlib.nullcontext(),
    ) -> None:
        """`scorer` may be None where the policy weight is 0; `timer(part)` is entered around each part."""
        self.prior, self.prompt, self.text, self.scorer = prior, prompt, text, scorer
        self.settings, self.policy, self.seed, self.noises = distillation, reward, seed, noises
        self.timer = timer
        self.baseline = RunningBaseline()
        # The two kernels, with what is the same for a whole run.
        scale, predicts, clip = distillation.guidance_scale, prior.prediction_type, prior.clip
        self._score_residual = functools.partial(
            score_residual, guidance_scale=scale, prediction_type=predicts, clip=clip, seed=seed
        )
        self._denoise_action = functools.partial(
            denoise_action, guidance_scale=scale, prediction_type=predicts, clip=clip, seed=seed
        )

    def __call__(self, pictures: Tensor, cameras: Tensor, timesteps: Tensor, step: int) -> Guided:
        """One step's guidance.

        Args:
            pictures: [V, 3, H, W] in [0, 1], of the prior's picture size and on its device.
            cameras: [V, 3] azimuth and elevation in radians, grey level of the background; on the CPU.
            timesteps: [V] int64, on the CPU: whether the policy acts at them is decided without a wait.
            step: counts the steps; the noise is a function of the seed and this number.
        """
        prior, actions = self.prior, self.noises
        noise_stream, action_stream = 2 * step, 2 * step + 1
        latents, device = prior.codec.encode(pictures), pictures.device
        strength = self.policy.policy_weight * policy_schedule(
            timesteps / len(prior.alphas_cumprod), self.policy.policy_max_timestep
        )
        conditions = prior.conditions(self.prompt, cameras)
        acting = bool((strength > 0).any())
        timesteps = timesteps.to(device, non_blocking=True)
        strength = strength.to(device, non_blocking=True)
        levels = prior.alphas_cumprod[timesteps]
        if self.policy.policy == "ddim" and acting:
            grad, rewards = self._ddim_step(
                pictures, latents, timesteps, conditions, strength, noise_stream, action_stream, step
            )
        else:
            per_action = levels.repeat_interleave(actions)
            noisy = add_noise(latents, per_action, self.seed, noise_stream, actions)
            with self.timer("predict"):
                guesses = prior.predict(noisy, timesteps.repeat_interleave(actions), conditions)
            rewards = advantages = torch.zeros(len(pictures), actions, device=device)
            if acting:
                rewards = self._rewards(noisy, guesses, per_action, pictures)
                advantages = self._advantages(rewards, step)
            weight = self._weight(levels)[:, None] * (1 + strength[:, None] * advantages) / actions
            with self.timer("residual"):
                grad = self._score_residual(
                    noisy,
                    *guesses,
                    per_action,
                    weight.flatten(),
                    noise_stream=noise_stream,
                    actions=actions,
                )
        energy = grad.square().mean()
        metrics = {"loss": 0.5 * energy, "residual": energy.sqrt()}
        if acting:
            metrics |= {"reward": rewards.mean(), "advantage_spread": rewards.std(dim=1).mean()}
        return Guided(prior.codec.encode_vjp(grad), metrics)

    def _ddim_step(
        self,
        pictures: Tensor,
        latents: Tensor,
        timesteps: Tensor,
        conditions: dict[str, Tensor],
        strength: Tensor,
        noise_stream: int,
        action_stream: int,
        step: int,
    ) -> tuple[Tensor, Tensor]:
        """SDS from one noise a view; K actions z_t' from its DDIM step, each judged by its clean guess."""
        prior, actions = self.prior, self.noises
        levels = prior.alphas_cumprod[timesteps]
        noisy = add_noise(latents, levels, self.seed, noise_stream)
        with self.timer("predict"):
            guesses = prior.predict(noisy, timesteps, conditions)
        with self.timer("residual"):
            grad = self._score_residual(
                noisy, *guesses, levels, self._weight(levels), noise_stream=noise_stream
            )
        later = (timesteps - round(DDIM_STRIDE * len(prior.alphas_cumprod))).clamp_min(0)
        repeated = [tensor.repeat_interleave(actions, 0) for tensor in (noisy, *guesses, levels, later)]
        noisy_k, cond_k, uncond_k, levels_k, later_k = repeated
        later_levels = torch.maximum(prior.alphas_cumprod[later_k], levels_k)
        action = self._denoise_action(
            noisy_k, cond_k, uncond_k, levels_k, later_levels, stream=action_stream, outputs=("action",)
        ).action
        assert action is not None
        with self.timer("predict"):
            reached = prior.predict(action, later_k, conditions)
        rewards = self._rewards(action, reached, later_levels, pictures)
        advantages = self._advantages(rewards, step)
        # Natural-gradient scaling: grad log pi = sqrt(abar') n / sigma, times sigma.
        weight = strength[:, None] * advantages * later_levels.view(-1, actions).sqrt() / actions
        with self.timer("residual"):
            grad = grad + self._score_residual(
                noisy_k,
                cond_k,
                uncond_k,
                levels_k,
                torch.zeros_like(levels_k),
                noise_stream=noise_stream,
                actions=actions,
                action_weight=weight.flatten(),
                action_stream=action_stream,
            )
        return grad, rewards

    def _weight(self, levels: Tensor) -> Tensor:
        """w(t) of the residual eps^ - eps, [V].

        `clean`: eps^ - eps = sqrt(abar / (1 - abar)) (z - z0^), so the gradient is sqrt(1 - abar) (z - z0^).
        """
        return (1 - levels) / levels.sqrt() if self.settings.residual == "clean" else 1 - levels

    def _rewards(
        self, noisy: Tensor, guesses: tuple[Tensor, Tensor], levels: Tensor, pictures: Tensor
    ) -> Tensor:
        """[V, K] rewards of the clean guesses that the actions lead to, or of the rendered views."""
        assert self.scorer is not None, "a policy gradient needs a scorer"
        views = len(pictures)
        if self.policy.reward_of == "render":
            with self.timer("reward"):
                return self.scorer.score(pictures, [self.text] * views)[:, None].expand(views, self.noises)
        with self.timer("residual"):
            clean = self._denoise_action(noisy, *guesses, levels, levels, outputs=("clean",)).clean
        assert clean is not None
        with self.timer("reward"):
            scores = self.scorer.score(self.prior.codec.decode(clean).clamp(0, 1), [self.text] * len(clean))
        return scores.view(views, self.noises)

    def _advantages(self, rewards: Tensor, step: int) -> Tensor:
        advantages = (
            group_advantages(rewards)
            if self.policy.baseline == "group"
            else self.baseline.advantages(rewards)
        )
        if self.policy.shuffle_advantages:
            advantages = shuffled(advantages, torch.Generator().manual_seed(self.seed * 1_000_003 + step))
        return advantages
