"""Rewards on a CLIP image tower: open_clip's preprocessing, an embedding, its product with a direction.

CLIP similarity, the aesthetic predictors, HPSv2 and PickScore all score a picture by
scale <e, d> + bias, where e is the tower's embedding of length 1. For some d is the prompt's embedding, for
others a constant.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ddpo3d_fast.engines import Engine, Network, Vjp, default_dtype, in_batches_of, load_network
from ddpo3d_fast.engines.cache import fingerprint
from ddpo3d_fast.resampling import Resize
from ddpo3d_fast.rewards.base import RewardSettings, Scores, SumOfRewards, check_images

GRADIENT_SCALE = 256.0  # of the gradient of <e, d> inside its tower, where a pixel's share is 1e-4 or less

TextEncoder = Callable[[str], Tensor]  # a prompt -> its embedding float32 [D], of length 1, on the CPU


@dataclass(frozen=True)
class Tower:
    """An image tower, on the CPU, and how it expects its pictures."""

    module: nn.Module  # normalised pictures [B, 3, size, size] -> embeddings [B, width] of any length
    width: int
    size: int  # pixels
    mean: Sequence[float]  # of red, green, blue
    std: Sequence[float]
    interpolation: str = "bicubic"  # or bilinear
    squash: bool = False  # both sides to `size`, instead of the short one and a crop


class Scorer(nn.Module):
    """Pictures [B, 3, size, size] in [0, 1], and text [B, D] without a constant direction -> scores [B]. With
    P directions, [P, D] or text [B, P, D] -> [B, P]."""

    mean: Tensor
    std: Tensor
    direction: Tensor | None

    def __init__(self, tower: Tower, direction: Tensor | None, scale: float, bias: float) -> None:
        super().__init__()
        self.tower, self.scale, self.bias = tower.module, scale, bias
        self.register_buffer("mean", torch.tensor(tower.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(tower.std).view(3, 1, 1))
        self.register_buffer("direction", direction)

    def forward(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        features = self.tower((images - self.mean) / self.std)
        if isinstance(features, tuple):  # CoCa's tower gives its tokens, too
            features = features[0]
        direction = self.direction if text is None else text
        assert direction is not None, "without a constant direction the text has to be given"
        if direction.dim() == (2 if text is None else 3):
            features = features[:, None]
        # In float32 whatever the tower computes in: differences between scores are small against the scores.
        along = (normalize(features.float(), dim=-1) * direction.float()).sum(-1)
        return self.scale * along + self.bias


class TowerReward:
    """scale <e, d> + bias of a tower's embedding e of length 1; d is a constant or the prompt's embedding.

    A prompt is embedded once, by the text tower on the CPU, and remembered. The image tower runs on an
    engine, its gradient on another: `network` is what they run. Either engine is made when it is first
    needed. InputError where the runtime cannot be had.
    """

    differentiable, capturable = True, True

    def __init__(
        self,
        name: str,
        tower: Tower,
        direction: Tensor | TextEncoder,
        scale: float = 1.0,
        bias: float = 0.0,
        wanted: RewardSettings | None = None,
    ) -> None:
        """`direction` [D], or what embeds prompts; `wanted` is as on the CPU if left out. Of several
        directions, [P, D], each gives a score: [B, P] in all, and a gradient that is that of their sum."""
        self.wanted = wanted or RewardSettings()
        self.name, self.device = name, torch.device(self.wanted.device)
        self.tower, self.direction, self.scale, self.bias = tower, direction, scale, bias
        self._size = tower.size
        self._resize = Resize(tower.size, tower.interpolation, tower.squash)
        self._embed = None if isinstance(direction, Tensor) else direction
        constant = direction.float() if isinstance(direction, Tensor) else None
        self._module = Scorer(tower, constant, scale, bias).eval()
        self._texts: dict[str, Tensor] = {}

    def prepare(self, gradient: bool) -> None:
        """Loads, or builds, the engines that would else be made at their first call."""
        _ = self._scorer
        if gradient:
            _ = self._scorer_vjp

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images float32 [B, 3, H, W] in [0, 1], one prompt each -> float32 [B].

        ValueError or TypeError for others.
        """
        self._check(images, prompts)
        if not prompts:
            return images.new_zeros(0)
        return self._scorer(images=self._resize(images.detach()), **self._text(prompts))["scores"]

    def score_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Scores [B], and the gradient [B, 3, H, W] of each image's own score; no autograd graph."""
        self._check(images, prompts)
        images = images.detach()
        if not prompts:
            return images.new_zeros(0), torch.zeros_like(images)
        outputs = self._scorer_vjp(images=self._resize(images), **self._text(prompts))
        return outputs["scores"], self._resize.vjp(images.shape, outputs["gradient"])

    @property
    def runtime(self) -> str:
        """For people: what runs the image tower."""
        return self._scorer.runtime

    def network(self, gradient: bool) -> Network:
        """`scorer`: images [B, 3, size, size], of the tower's size, and text [B, D] if the prompt counts, to
        `scores` [B]. `scorer_vjp`: the same to `scores` and `gradient` [B, 3, size, size]."""
        generator = torch.Generator().manual_seed(0)
        inputs = {"images": torch.rand(2, 3, self._size, self._size, generator=generator)}
        if self._embed is not None:
            inputs["text"] = self._text(["a photo", "a drawing"])["text"].cpu()  # not at right angles
        batches = self.wanted.batches
        return Network(
            name="scorer_vjp" if gradient else "scorer",
            module=Vjp(self._module, lift=GRADIENT_SCALE / self.scale).eval() if gradient else self._module,
            inputs=inputs,
            outputs=("scores", "gradient") if gradient else ("scores",),
            dynamic=dict.fromkeys(inputs, (0,)),
            gradient=gradient,
            shapes=(in_batches_of(batches[gradient], inputs),) if batches else (),
        )

    @functools.cached_property
    def _scorer(self) -> Engine:
        # Not in bf16 by itself: it would round as much as the rewards differ that a policy compares.
        by_itself = torch.float32 if self.device.type == "cpu" else None
        dtype = self.wanted.dtype or by_itself
        return load_network(self.network(gradient=False), self.device, self.wanted.runtime, dtype)

    @functools.cached_property
    def _scorer_vjp(self) -> Engine:
        on_cpu = self.wanted.runtime == "auto" and self.device.type == "cpu"
        runtime = "torch" if on_cpu else self.wanted.runtime  # autograd needs no export
        dtype = self.wanted.dtype or default_dtype(self.device, self.wanted.runtime)
        return load_network(self.network(gradient=True), self.device, runtime, dtype)

    def _text(self, prompts: list[str]) -> dict[str, Tensor]:
        if self._embed is None:
            return {}
        for prompt in prompts:
            if prompt not in self._texts:
                with torch.no_grad():
                    self._texts[prompt] = self._embed(prompt).to(self.device)
        return {"text": torch.stack([self._texts[prompt] for prompt in prompts])}

    def _check(self, images: Tensor, prompts: list[str]) -> None:
        check_images(images, self.device)
        if len(prompts) != len(images):
            raise ValueError(f"prompts: expected one for each of {len(images)} images, got {len(prompts)}")


def tower_key(tower: Tower) -> str:
    """The same for towers that compute the same; reads all their weights."""
    module = fingerprint(Network("tower", tower.module, {}, ()))
    return json.dumps([module, tower.size, *tower.mean, *tower.std, tower.interpolation, tower.squash])


class SharedTower(SumOfRewards):
    """The weighted sum of rewards whose towers are the same, which then runs once: each is linear in its
    embedding, so all are products with directions. No weight is 0."""

    differentiable, capturable = True, True

    def __init__(self, parts: Sequence[tuple[TowerReward, float]]) -> None:
        first, self.name = parts[0][0], " + ".join(reward.name for reward, _ in parts)
        self._parts = [(reward.name, weight, reward.bias) for reward, weight in parts]
        weights = [weight * reward.scale for reward, weight in parts]
        scale = sum(map(abs, weights)) or 1.0
        directions = [reward.direction for reward, _ in parts]  # and not `parts`, which hold the other towers
        shares = torch.tensor(weights)[:, None] / scale

        def direction(prompt: str) -> Tensor:
            return shares * torch.stack([d if isinstance(d, Tensor) else d(prompt) for d in directions])

        constant = all(isinstance(one, Tensor) for one in directions)
        along = direction("") if constant else direction
        self.tower = TowerReward(self.name, first.tower, along, scale, wanted=first.wanted)

    @property
    def runtime(self) -> str:
        """For people: what runs the image tower."""
        return self.tower.runtime

    def prepare(self, gradient: bool) -> None:
        """Loads, or builds, the engines that would else be made at their first call."""
        self.tower.prepare(gradient)

    def scores(self, images: Tensor, prompts: list[str]) -> Scores:
        return self._apart(self.tower.score(images, prompts))

    def scores_vjp(self, images: Tensor, prompts: list[str]) -> tuple[Scores, Tensor]:
        weighted, gradient = self.tower.score_vjp(images, prompts)
        return self._apart(weighted), gradient

    def _apart(self, weighted: Tensor) -> Scores:
        """Of weighted scores [B, P] without their biases."""
        weighted = weighted.view(-1, len(self._parts))  # of no pictures, too
        bias = sum(weight * bias for _, weight, bias in self._parts)
        each = {
            name: weighted[:, part] / weight + bias for part, (name, weight, bias) in enumerate(self._parts)
        }
        return Scores(weighted.sum(1) + bias, each)
