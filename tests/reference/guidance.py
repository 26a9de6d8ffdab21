"""From pictures to their loss's gradient: docs/method.md, "Score distillation" to "The reward guide"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast.settings import Config

from .draws import Draw, philox_normal

Score = Callable[[Tensor, list[str]], Tensor]  # pictures [B, 3, H, W], prompts -> [B]


class Guided(NamedTuple):
    grad_pictures: Tensor  # [V, 3, H, W] of the views' own losses
    rewards: Tensor  # [32] the window of the run's rewards afterwards, NaN where there was none
    metrics: dict[str, float]


def over(values: Tensor, like: Tensor) -> Tensor:
    """[B] numbers for [B, C, h, w]."""
    return values.view(-1, *[1] * (like.dim() - 1))


class Guess(NamedTuple):
    noise: Tensor
    clean: Tensor


def converted(kind: str, noisy: Tensor, abar: Tensor, prediction: Tensor) -> Guess:
    """What a prediction says of the noise and of the clean latents."""
    a = over(abar, noisy)
    if kind == "epsilon":
        return Guess(prediction, (noisy - (1 - a).sqrt() * prediction) / a.sqrt())
    if kind == "v_prediction":
        return Guess(
            (1 - a).sqrt() * noisy + a.sqrt() * prediction, a.sqrt() * noisy - (1 - a).sqrt() * prediction
        )
    return Guess((noisy - a.sqrt() * prediction) / (1 - a).sqrt(), prediction)


def guided(
    prior: Any, noisy: Tensor, abar: Tensor, cond: Tensor, uncond: Tensor, scale: float, rescale: float = 0.0
) -> Guess:
    """Classifier-free guidance at a scale, rescaled and clipped."""
    a = over(abar, noisy)
    guess = converted(prior.prediction_type, noisy, abar, uncond + scale * (cond - uncond))
    clean = guess.clean
    if rescale:
        plain = converted(prior.prediction_type, noisy, abar, cond).clean
        ratio = plain.flatten(1).std(1, correction=0) / clean.flatten(1).std(1, correction=0)
        clean = clean * over(rescale * ratio + 1 - rescale, clean)
    if prior.clip is not None:
        clean = clean.clamp(*prior.clip)
    if rescale or prior.clip is not None:
        return Guess((noisy - a.sqrt() * clean) / (1 - a).sqrt(), clean)
    return guess


def residual(
    prior: Any,
    config: Config,
    noisy: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    predictions: tuple[Tensor, ...],
) -> Tensor:
    """w(t) times what pulls, of every item [B, ...]."""
    kind, scale = config.distillation.residual, config.distillation.guidance_scale
    abar = prior.alphas_cumprod.double()[timesteps]
    a = over(abar, noisy)
    if kind in ("clean", "sds"):
        rescale = config.distillation.guidance_rescale
        guess = guided(prior, noisy, abar, predictions[0], predictions[1], scale, rescale)
        weight = (1 - a) / a.sqrt() if kind == "clean" else 1 - a
        return weight * (guess.noise - noise)
    said = [converted(prior.prediction_type, noisy, abar, each).noise for each in predictions]
    if kind == "csd":
        return (1 - a) * (said[0] - said[1])
    cond, nothing, negative = said
    early = over(timesteps / len(prior.alphas_cumprod), noisy) < 0.2
    return (1 - a) * (scale * (cond - nothing) + torch.where(early, nothing, nothing - negative))


def advantages(rewards: Tensor, window: Tensor, baseline: str) -> Tensor:
    """[V, K] of rewards [V, K]."""
    if baseline == "group":
        mean, spread = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    else:
        seen = window[~window.isnan()]
        if len(seen) < 16:
            return torch.zeros_like(rewards)
        mean, spread = seen.mean(), seen.std()
    return ((rewards - mean) / (spread + 1e-6)).clamp(-5, 5)


@dataclass(frozen=True)
class Views:
    """What a step guides, and what with."""

    pictures: Tensor  # [V, 3, H, W]
    z: Tensor  # [V, C, h, w] their latents
    timesteps: Tensor  # [V]
    strength: Tensor  # [V] lambda
    conditions: Any
    number: int  # of the step
    config: Config
    prior: Any
    score: Score | None
    window: Tensor

    def noise(self, each: int, stream: int) -> Tensor:
        """[V each, ...] of a stream."""
        return philox_normal((len(self.z) * each, *self.z.shape[1:]), self.config.seed, stream)

    def abar(self, timesteps: Tensor) -> Tensor:
        return self.prior.alphas_cumprod.double()[timesteps]

    def rewards(self, noisy: Tensor, abar: Tensor, predictions: tuple[Tensor, ...]) -> Tensor:
        """[V, K] of what the actions lead to."""
        assert self.score is not None
        wishes, views, prompt = self.config.reward, len(self.pictures), self.config.prompt
        if wishes.reward_of == "render":
            scores = self.score(self.pictures, [prompt] * views)
            return scores[:, None].expand(views, len(noisy) // views)
        scale = wishes.reward_guidance_scale or self.config.distillation.guidance_scale
        clean = guided(self.prior, noisy, abar, predictions[0], predictions[1], scale).clean
        scored = self.prior.codec.decode(clean).clamp(0, 1)
        return self.score(scored, [prompt] * len(scored)).view(views, -1)

    def weights(self, rewards: Tensor) -> Tensor:
        """[V, K] lambda A."""
        found = advantages(rewards, self.window, self.config.reward.baseline)
        if self.config.reward.shuffle_advantages:
            generator = torch.Generator().manual_seed(1000003 * self.config.seed + self.number)
            found = found.gather(1, torch.rand(*rewards.shape, generator=generator).argsort(1))
        return self.strength[:, None] * found


class Noised(NamedTuple):
    """Noisy latents, what the prior says of them, and what distillation makes of that."""

    z_t: Tensor  # [V each, ...]
    abar: Tensor  # [V each]
    predictions: tuple[Tensor, ...]
    pull: Tensor  # [V, each, ...]


def noised(views: Views, each: int) -> Noised:
    z, prior = views.z, views.prior
    timesteps, noise = views.timesteps.repeat_interleave(each), views.noise(each, 2 * views.number)
    abar = views.abar(timesteps)
    z_t = over(abar.sqrt(), z) * z.repeat_interleave(each, 0) + over((1 - abar).sqrt(), z) * noise
    predictions = prior.predict(z_t, timesteps, views.conditions)
    pull = residual(prior, views.config, z_t, noise, timesteps, predictions)
    return Noised(z_t, abar, predictions, pull.view(len(z), each, *z.shape[1:]))


def noise_policy(views: Views) -> tuple[Tensor, Tensor]:
    """The gradient on the latents, and the rewards [V, K]."""
    compared = views.config.reward.reward_of == "action"
    z_t, abar, predictions, pull = noised(views, views.config.schedule.noises or (2 if compared else 1))
    rewards = views.rewards(z_t, abar, predictions)
    weights = 1 + views.weights(rewards)
    return (weights.view(*weights.shape, 1, 1, 1) * pull).mean(1), rewards


def ddim_policy(views: Views) -> tuple[Tensor, Tensor]:
    """The same."""
    z, prior, actions = views.z, views.prior, views.config.schedule.noises or 2
    z_t, abar, predictions, pull = noised(views, 1)
    later = (views.timesteps - round(len(prior.alphas_cumprod) / 10)).clamp_min(0)
    abar_later = views.abar(later)
    scale = views.config.distillation.guidance_scale
    guess = guided(prior, z_t, abar, predictions[0], predictions[1], scale)
    variance = (1 - abar_later) / (1 - abar) * (1 - abar / abar_later)
    mean = over(abar_later.sqrt(), z) * guess.clean
    mean = mean + over((1 - abar_later - variance).sqrt(), z) * guess.noise
    n, sigma = views.noise(actions, 2 * views.number + 1), variance.sqrt().repeat_interleave(actions)
    action = mean.repeat_interleave(actions, 0) + over(sigma, z) * n
    later, reached = later.repeat_interleave(actions), abar_later.repeat_interleave(actions)
    rewards = views.rewards(action, reached, prior.predict(action, later, views.conditions))
    weights = views.weights(rewards) * abar_later.sqrt()[:, None]
    policy = weights.view(*weights.shape, 1, 1, 1) * n.view(len(z), actions, *z.shape[1:])
    return pull[:, 0] - policy.mean(1), rewards


def guidance(
    pictures: Tensor, now: Draw, number: int, config: Config, prior: Any, score: Score | None, window: Tensor
) -> Guided:
    wishes = config.reward
    prompt = prior.prompt(config.prompt, config.negative_prompt, config.distillation.residual == "nfsd")
    seen_from = torch.stack([now.cameras.azimuth, now.cameras.elevation, now.backgrounds], 1)
    leaf = pictures.detach().requires_grad_()
    latents = prior.codec.encode(leaf)
    fraction = now.timesteps.double() / len(prior.alphas_cumprod)
    asks = wishes.policy != "scene" and (number - 1) % wishes.policy_every == 0
    weight = wishes.policy_weight if asks else 0
    strength = weight * ((wishes.policy_max_timestep - fraction) / 0.2).clamp(0, 1)
    views = Views(
        pictures,
        latents.detach(),
        now.timesteps,
        strength,
        prior.conditions(prompt, seen_from),
        number,
        config,
        prior,
        score,
        window,
    )
    metrics: dict[str, float] = {}
    if bool((strength > 0).any()):
        grad, rewards = {"noise": noise_policy, "ddim": ddim_policy}[wishes.policy](views)
        spread = float(rewards.std(1).mean()) if rewards.shape[1] > 1 else 0.0
        metrics |= {"reward": float(rewards.mean()), "advantage_spread": spread}
        if wishes.baseline == "running":
            window = torch.cat([window, rewards.flatten()])[-32:]
    else:
        grad = noised(views, config.schedule.noises or 1).pull.mean(1)
    metrics |= {"loss": 0.5 * float((grad**2).mean()), "residual": math.sqrt(float((grad**2).mean()))}

    (grad_pictures,) = torch.autograd.grad(latents, leaf, grad)
    scores = torch.zeros(())
    if score is not None and wishes.guide_weight:
        scores = score(leaf, [config.prompt] * len(pictures))
    if scores.requires_grad:  # else the reward has no gradient
        (ascent,) = torch.autograd.grad(scores.sum(), leaf)
        length = grad_pictures.flatten(1).norm(dim=1) / ascent.flatten(1).norm(dim=1)
        grad_pictures = grad_pictures - wishes.guide_weight * over(length, ascent) * ascent
        metrics["guide"] = float(scores.detach().mean())
    return Guided(grad_pictures, window, metrics)
