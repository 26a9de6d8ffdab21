"""From pictures to their loss's gradient: docs/method.md, "Score distillation" to "The reward guide"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast.settings import Config

from .draws import Draw, batch_size, philox_normal
from .exploration import Fields, across, counted, estimate, rho
from .scene import Tensors
from .view_policy import view_policy

Score = Callable[[Tensor, list[str]], Tensor]  # pictures [B, 3, H, W], prompts -> [B]


class Guided(NamedTuple):
    grad_pictures: Tensor  # [V, 3, H, W] of the views' own losses
    rewards: Tensor  # [32] the window of the run's rewards afterwards, NaN where there was none
    kept: Tensors  # what the policies know afterwards
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


def inverted(
    views: Views, path: list[Tensor], first: Tensor, scale: float, either: bool
) -> tuple[Tensor, Tensor]:
    """DDIM's inversion of z over timesteps [B] in rising order: the latents at the last of them, and the
    noise guessed at the one before. `either`: for the prompt, too, and not without it alone."""
    prior, each = views.prior, len(first) // len(views.z)
    abar = [over(views.abar(at), first) for at in path]
    z_t, noise = abar[0].sqrt() * views.z.repeat_interleave(each, 0) + (1 - abar[0]).sqrt() * first, first
    for at, here, there in zip(path, abar, abar[1:], strict=False):
        cond, uncond = prior.predict(z_t, at, views.conditions)[:2]
        guess = guided(prior, z_t, here.flatten(), cond if either else uncond, uncond, scale)
        z_t, noise = there.sqrt() * guess.clean + (1 - there).sqrt() * guess.noise, guess.noise
    return z_t, noise


def found(views: Views, timesteps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents at timesteps [B], and the noise that the guess is held against."""
    kind, total = views.config.distillation.residual, len(views.prior.alphas_cumprod)
    if kind == "ism":
        s = (timesteps - round(total / 20)).clamp_min(0)
        return inverted(views, [s // 4, s // 2, 3 * s // 4, s, timesteps], noise, 1.0, False)
    a = over(views.abar(timesteps), noise)
    z = views.z.repeat_interleave(len(noise) // len(views.z), 0)
    if kind == "sdi":
        path = [(timesteps * i / 10).floor().long() for i in range(1, 11)]
        z_t, _ = inverted(views, path, noise, 2 - views.config.distillation.guidance_scale, True)
        return z_t, (z_t - a.sqrt() * z) / (1 - a).sqrt()
    return a.sqrt() * z + (1 - a).sqrt() * noise, noise


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
    if kind in ("clean", "sds", "ism", "sdi"):
        rescale = config.distillation.guidance_rescale
        guess = guided(prior, noisy, abar, predictions[0], predictions[1], scale, rescale)
        weight = (1 - a) / a.sqrt() if kind in ("clean", "sdi") else 1 - a
        return weight * (guess.noise - noise)
    said = [converted(prior.prediction_type, noisy, abar, each).noise for each in predictions]
    if kind == "csd":
        return (1 - a) * (said[0] - said[1])
    cond, nothing, negative = said
    early = over(timesteps / len(prior.alphas_cumprod), noisy) < 0.2
    return (1 - a) * (scale * (cond - nothing) + torch.where(early, nothing, nothing - negative))


def advantages(rewards: Tensor, window: Tensor, baseline: str) -> Tensor:
    """[V, K] of rewards [V, K]."""
    if baseline == "rewardsds":
        better = (rewards[:, :, None] > rewards[:, None]).sum(2)  # than so many of its view
        count = rewards.shape[1]
        weight = torch.where(better >= count - 2, 0.45, torch.where(better < 2, -0.05, 0.0)).double()
        return count * weight - 1
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
    number: int  # of the step that draws for this one
    draws: bool  # whether it is this one
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

    def advantages(self, rewards: Tensor) -> Tensor:
        """[V, K] A."""
        found = advantages(rewards, self.window, self.config.reward.baseline)
        if self.config.reward.shuffle_advantages:
            generator = torch.Generator().manual_seed(1000003 * self.config.seed + self.number)
            found = found.gather(1, torch.rand(*rewards.shape, generator=generator).argsort(1))
        return found


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
    z_t, noise = found(views, timesteps, noise)
    predictions = prior.predict(z_t, timesteps, views.conditions)
    pull = residual(prior, views.config, z_t, noise, timesteps, predictions)
    return Noised(z_t, abar, predictions, pull.view(len(z), each, *z.shape[1:]))


def noise_policy(views: Views) -> tuple[Tensor, Tensor]:
    """The gradient on the latents, and the rewards [V, K]."""
    compared = views.config.reward.reward_of == "action"
    z_t, abar, predictions, pull = noised(views, views.config.schedule.noises or (2 if compared else 1))
    rewards = views.rewards(z_t, abar, predictions)
    weights = 1 + views.strength[:, None] * views.advantages(rewards)
    return (weights.view(*weights.shape, 1, 1, 1) * pull).mean(1), rewards


class Latent(NamedTuple):
    """What the latent policy adds to a step."""

    grad: Tensor  # [V, ...] on the latents, distillation's included
    kept: Tensors
    metrics: dict[str, float]
    rewards: Tensor | None  # [V, K] where actions were drawn


def latent_policy(views: Views, kept: Tensors) -> Latent:
    z, prior, wishes = views.z, views.prior, views.config.reward
    actions, steps = views.config.schedule.noises or 2, wishes.policy_ddim_steps
    z_t, abar, predictions, pull = noised(views, 1)
    pull = pull[:, 0]
    later = (views.timesteps - round(len(prior.alphas_cumprod) / 10)).clamp_min(0)
    abar_later, scale = views.abar(later), views.config.distillation.guidance_scale
    guess = guided(prior, z_t, abar, predictions[0], predictions[1], scale)
    variance = (1 - abar_later) / (1 - abar) * (1 - abar / abar_later)
    mean = over(abar_later.sqrt(), z) * guess.clean
    mean = mean + over((1 - abar_later - variance).sqrt(), z) * guess.noise
    grid = wishes.policy_grid if wishes.policy_exploration == "lowpass" else None
    fields = Fields(tuple(z.shape[1:]), grid, prior.codec.patch)
    c = philox_normal((len(z) * actions, *fields.shape), views.config.seed, 2 * views.number + 1)
    sigma = variance.sqrt()
    metrics, rewards = {}, None
    if views.draws:
        now = mean.repeat_interleave(actions, 0) + over(sigma.repeat_interleave(actions), z) * fields(c)
        for left in range(steps, 0, -1):
            at = later * left // steps
            abar_at = views.abar(at).repeat_interleave(actions)
            said = prior.predict(now, at.repeat_interleave(actions), views.conditions)
            if left > 1:
                guess = guided(prior, now, abar_at, said[0], said[1], scale)
                after = views.abar(later * (left - 1) // steps).repeat_interleave(actions)
                now = over(after.sqrt(), z) * guess.clean + over((1 - after).sqrt(), z) * guess.noise
        rewards = views.rewards(now, abar_at, said)
        kept = kept | {"latent_advantages": views.advantages(rewards)}
        metrics |= {"reward": float(rewards.mean()), "advantage_spread": float(rewards.std(1).mean())}
        if "latent_means" in kept:
            kept = kept | {"latent_means": mean.flatten()}
    c, advantages = c.unflatten(0, (len(z), actions)), kept["latent_advantages"]
    found = [estimate(advantages[v], c[v]) for v in range(len(z))]
    if views.draws:
        kept = kept | {"latent_signal": counted(kept["latent_signal"], found)}
    signal = rho(kept["latent_signal"], c[:, 0].numel())
    pulled, ratios = torch.zeros_like(pull), torch.ones(len(z), actions, dtype=torch.float64)
    for v in range(len(z)):
        whole = towards = fields(found[v][0])
        if "latent_means" in kept:
            before = kept["latent_means"].view(mean.shape)[v]
            moved = c[v] + fields.coefficients(before - mean[v]) / sigma[v]
            ratio = ((c[v] ** 2 - moved**2).flatten(1).mean(1) / 2).exp()
            binds = ((advantages[v] > 0) & (ratio > 1 + wishes.policy_clip)) | (
                (advantages[v] <= 0) & (ratio < 1 - wishes.policy_clip)
            )
            weights = torch.where(binds, 0.0, ratio * advantages[v])
            towards, ratios[v] = fields((over(weights, moved) * moved).mean(0)), ratio
        size = 4 * views.strength[v] * signal * across(pull[v], towards)
        if whole.norm():
            pulled[v] = size * towards / whole.norm()
    if "latent_means" in kept:
        metrics["approximate_kl"] = 0.5 * float((ratios.log() ** 2).mean())
        metrics["clip_fraction"] = float(((ratios - 1).abs() > wishes.policy_clip).double().mean())
    if "latent_means" not in kept:
        kept = {name: tensor for name, tensor in kept.items() if name != "latent_advantages"}
    return Latent(pull - pulled, kept, metrics | {"signal": signal}, rewards)


def guidance(
    pictures: Tensor,
    alpha: Tensor,  # [V, H, W]
    now: Draw,
    number: int,
    config: Config,
    prior: Any,
    score: Score | None,
    window: Tensor,
    kept: Tensors,
) -> Guided:
    wishes = config.reward
    prompt = prior.prompt(config.prompt, config.negative_prompt, config.distillation.residual == "nfsd")
    seen_from = torch.stack([now.cameras.azimuth, now.cameras.elevation, now.backgrounds], 1)
    leaf = pictures.detach().requires_grad_()
    latents = prior.codec.encode(leaf)
    fraction = now.timesteps.double() / len(prior.alphas_cumprod)
    updates = batch_size(config)
    first = number - (number - 1) % updates
    asks = wishes.policy in ("noise", "latent") and (number - 1) // updates % wishes.policy_every == 0
    weight = wishes.policy_weight if asks else 0
    strength = weight * ((wishes.policy_max_timestep - fraction) / 0.2).clamp(0, 1)
    views = Views(
        pictures,
        latents.detach(),
        now.timesteps,
        strength,
        prior.conditions(prompt, seen_from),
        first,
        first == number,
        config,
        prior,
        score,
        window,
    )
    metrics: dict[str, float] = {}
    if bool((strength > 0).any()):
        if wishes.policy == "noise":
            grad, rewards = noise_policy(views)
            spread = float(rewards.std(1).mean()) if rewards.shape[1] > 1 else 0.0
            metrics |= {"reward": float(rewards.mean()), "advantage_spread": spread}
        else:
            grad, kept, told, rewards = latent_policy(views, kept)
            metrics |= told
        if wishes.baseline == "running" and rewards is not None:
            window = torch.cat([window, rewards.flatten()])[-32:]
    else:
        grad = noised(views, config.schedule.noises or 1).pull.mean(1)
    metrics |= {"loss": 0.5 * float((grad**2).mean()), "residual": math.sqrt(float((grad**2).mean()))}

    (grad_pictures,) = torch.autograd.grad(latents, leaf, grad)
    if wishes.policy == "view" and wishes.policy_weight:
        assert score is not None
        added, kept, told = view_policy(pictures, alpha, grad_pictures, kept, number, config, score)
        grad_pictures, metrics = grad_pictures + added, metrics | told
    scores = torch.zeros(())
    if score is not None and wishes.guide_weight:
        scores = score(leaf, [config.prompt] * len(pictures))
    if scores.requires_grad:  # else the reward has no gradient
        (ascent,) = torch.autograd.grad(scores.sum(), leaf)
        length = grad_pictures.flatten(1).norm(dim=1) / ascent.flatten(1).norm(dim=1)
        grad_pictures = grad_pictures - wishes.guide_weight * over(length, ascent) * ascent
        metrics["guide"] = float(scores.detach().mean())
    return Guided(grad_pictures, window, kept, metrics)
