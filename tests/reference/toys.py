"""A small prior, a reward and a scene: smooth functions in either precision, in which every input counts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from .scene import PARAMETERS, Tensors
from .scene_policy import FIELDS, UNITS

TIMESTEPS = 500


def pattern(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Fixed numbers in [-1, 1] without a period."""
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return (count * count * 0.37 + 1.3 * count + 0.5).sin().view(shape).to(like)


class ToyCodec:
    """Pictures [V, 3, H, W] to latents [V, 4, H/2, W/2], not linear; and back, beyond [0, 1] too."""

    patch = 1

    def __init__(self) -> None:
        self.runtimes: dict[str, str] = {}

    def prepare(self, decodes: bool) -> None:
        """Nothing to make."""

    def encode(self, pictures: Tensor) -> Tensor:
        mixed = torch.einsum("dc,vchw->vdhw", pattern((4, 3), pictures), avg_pool2d(pictures, 2) * 2 - 1)
        return torch.sin(mixed)

    def encode_with_vjp(self, pictures: Tensor) -> Any:
        with torch.enable_grad():
            leaf = pictures.detach().requires_grad_()
            latents = self.encode(leaf)
        return latents.detach(), lambda grad: torch.autograd.grad(latents, leaf, grad)[0]

    def decode(self, latents: Tensor) -> Tensor:
        mixed = torch.einsum("cd,vdhw->vchw", pattern((3, 4), latents), latents)
        return 0.5 + interpolate(mixed, scale_factor=2, mode="nearest")


class ToyPrior:
    """Predicts whatever kind it is told to, from prompt, camera, timestep and neighbouring latents."""

    device, runtime, picture_size = torch.device("cpu"), "a toy", 16

    def __init__(
        self,
        prediction_type: str = "sample",
        clip: tuple[float, float] | None = (-0.6, 0.6),
        highest_timestep: float = 1.0,
    ) -> None:
        self.prediction_type, self.clip, self.codec = prediction_type, clip, ToyCodec()
        self.highest_timestep = highest_timestep
        turn = torch.linspace(0.05, 1.5, TIMESTEPS, dtype=torch.float64)
        self.alphas_cumprod = (turn.cos() ** 2).float()

    def prompt(self, text: str, negative: str = "", three: bool = False) -> list[str]:
        return [text, *(["", negative] if three else [negative])]

    def conditions(self, prompt: list[str], cameras: Tensor) -> dict[str, Tensor]:
        azimuth, elevation, grey = cameras.unbind(1)
        camera = torch.stack([azimuth.sin(), azimuth.cos(), elevation, grey], 1)
        said = [pattern((4,), cameras) * (sum(map(ord, text)) % 97 / 30) for text in prompt]
        return {"words": torch.stack([0.5 * torch.sin(camera + word) for word in said])}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> tuple[Tensor, ...]:
        words = conditions["words"]
        actions = len(noisy) // words.shape[1]
        late = (timesteps / TIMESTEPS).view(-1, 1, 1, 1).to(noisy)
        around = 0.6 * noisy + 0.3 * noisy.roll(1, 2) - 0.4 * noisy.roll(2, 3)
        return tuple(
            0.8
            * torch.tanh(
                around * (1.2 - late) + each.repeat_interleave(actions, 0)[:, :, None, None].to(noisy)
            )
            for each in words
        )


def score(images: Tensor, prompts: list[str]) -> Tensor:
    """[B]: likes some pixels, dislikes others, and the more so the longer the prompt."""
    likes = pattern(tuple(images.shape[1:]), images)
    words = torch.tensor([1 + len(prompt) / 20 for prompt in prompts]).to(images)
    return 20 * words * ((images * likes).mean((1, 2, 3)) + 0.3 * (images**2).mean((1, 2, 3)))


def blind_score(images: Tensor, prompts: list[str]) -> Tensor:
    """The same without a gradient."""
    return score(images.detach(), prompts)


def steep_score(images: Tensor, prompts: list[str]) -> Tensor:
    """The same, but that the best of many is far above the others."""
    return (10 * (score(images, prompts) - 3)).exp()


score.differentiable = steep_score.differentiable = True

REWARD, BLIND_REWARD, STEEP_REWARD = (f"toy_{name}reward:score" for name in ("", "blind_", "steep_"))
# By what --reward calls them.
REWARDS = {REWARD: score, BLIND_REWARD: blind_score, STEEP_REWARD: steep_score}


def scene(count: int, seed: int) -> Tensors:
    """Gaussians in the middle of a run, float32: flat and long ones, faint and strong, some outside of the
    object, some colours at their limit; Adam's moments of the size of the gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    means = 0.3 * normal(count, 3)
    means[: count // 8] *= 3
    tensors = {
        "means": means,
        "quats": normal(count, 4),
        "log_scales": (0.03 + 0.12 * uniform(count, 3) ** 2).log(),
        "logit_opacities": 1.2 * normal(count) - 0.5,
        "sh": (1.75 * (2 * uniform(count, 1, 3) - 1) * 1.1).clamp(-1.769, 1.769),
    }
    tensors["logit_opacities"][::6] = -4 + 2 * uniform(len(tensors["logit_opacities"][::6]))
    sizes = {"means": 2.0, "quats": 0.1, "log_scales": 0.3, "logit_opacities": 0.3, "sh": 0.3}
    for name in PARAMETERS:
        shape = tensors[name].shape
        tensors[f"exp_avg.{name}"] = 0.3 * sizes[name] * normal(*shape)
        tensors[f"exp_avg_sq.{name}"] = (sizes[name] * (0.5 + uniform(*shape))) ** 2
    return tensors


def estimate(seed: int) -> Tensor:
    """[2, F, C] of the scene policy in the middle of a run, sure of some channels and not of others."""
    generator = torch.Generator().manual_seed(seed)
    mean, size = torch.randn(2, FIELDS, len(UNITS), generator=generator)
    return torch.stack([0.3 * mean, 0.02 * size**2]).double()


class InFloat32:
    """A prior for single precision alone, as one for either."""

    def __init__(self, prior: Any) -> None:
        self.prior = prior
        for name in ("codec", "picture_size", "alphas_cumprod", "highest_timestep"):
            setattr(self, name, getattr(prior, name))
        self.prediction_type, self.clip, self.prompt = prior.prediction_type, prior.clip, prior.prompt

    def conditions(self, prompt: Any, cameras: Tensor) -> dict[str, Tensor]:
        return self.prior.conditions(prompt, cameras.float())

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(each.double() for each in self.prior.predict(noisy.float(), timesteps, conditions))


def in_float32(reward: Any) -> Any:
    """A reward's score as a function that autograd can go back through."""

    class Scored(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, images: Tensor, prompts: list[str]) -> Tensor:
            if not images.requires_grad:
                return reward.score(images.float(), prompts).double()
            scores, context.gradient = reward.score_vjp(images.float(), prompts)
            return scores.double()

        @staticmethod
        def backward(context: Any, grad: Tensor) -> Any:
            return grad[:, None, None, None] * context.gradient.double(), None

    return Scored.apply
