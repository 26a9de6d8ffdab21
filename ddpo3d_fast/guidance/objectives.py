"""What pulls the latents: each objective is a weight w(t), a residual of the prior's predictions, and a noise
that these are of.

One of one's own is a file, a line in OBJECTIVES, and its name in the settings' Literal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ddpo3d_fast.guidance.inversion import interval, inverted
from ddpo3d_fast.kernels import (
    add_noise,
    csd_mixture,
    denoise_action,
    guidance_rescale,
    mixed_residual,
    nfsd_mixture,
    score_residual,
)

NOISE_STREAM, ACTION_STREAM = 0, 1  # of Philox, beside the step's offset


Predict = Callable[[Tensor, Tensor, slice], tuple[Tensor, ...]]
"""Noisy latents [B, ...] at int64 timesteps [B] to predictions [B, ...]: a slice of those for the prompt and
each of what it is held against"""


class Noised(NamedTuple):
    """Noisy latents: item v K + k is noise k of view v, B = V K in all."""

    noisy: Tensor  # [B, ...] z_t
    found: Tensor | None  # [B, ...] noise that guesses are held against; None: that of the step's stream
    levels: Tensor  # [B] abar
    timesteps: Tensor  # [B] int64
    stream_offset: Tensor  # [1] int64, of the step's noises
    noises: int  # K


class Denoised(NamedTuple):
    """Noisy latents and what the prior makes of them."""

    noisy: Tensor  # [B, ...] z_t
    guesses: tuple[Tensor, ...]  # [B, ...] each: for the prompt, then for each of what it is held against
    levels: Tensor  # [B] abar
    timesteps: Tensor  # [B] int64
    stream_offset: Tensor  # [1] int64, of the step's noises
    noises: int  # K
    found: Tensor | None = None  # [B, ...] as in `Noised`

    @classmethod
    def of(cls, noised: Noised, guesses: tuple[Tensor, ...]) -> Denoised:
        return cls(noised.noisy, guesses, *noised[2:], noised.found)


class Noising(NamedTuple):
    """What noisy latents are made of."""

    latents: Tensor  # [V, ...] z
    levels: Tensor  # [B] abar of the wanted ones
    timesteps: Tensor  # [B] int64
    alphas_cumprod: Tensor  # [T]
    seed: int
    stream_offset: Tensor  # [1] int64, of the step's noises
    noises: int  # K
    predict: Predict

    def add_noise(self, levels: Tensor) -> Tensor:
        """[B, ...], at levels [B], by the step's own noises."""
        return add_noise(
            self.latents, levels, self.seed, NOISE_STREAM, self.noises, stream_offset=self.stream_offset
        )

    def noised(self, noisy: Tensor, found: Tensor | None) -> Noised:
        """What came of it."""
        return Noised(noisy, found, self.levels, self.timesteps, self.stream_offset, self.noises)


@dataclass(frozen=True)
class Arithmetic:
    """The fused kernels, with what is the same for a whole run."""

    prediction_type: str
    clip: tuple[float, float] | None  # of clean guesses
    train_timesteps: int
    guidance_scale: float
    guidance_rescale: float  # 0 to 1
    seed: int

    @property
    def score_residual(self) -> Callable[..., Tensor]:
        return functools.partial(score_residual, **self._same)

    @property
    def denoise_action(self) -> Callable[..., Any]:
        return functools.partial(denoise_action, **self._same)

    @property
    def _same(self) -> dict[str, Any]:
        return {
            "guidance_scale": self.guidance_scale,
            "prediction_type": self.prediction_type,
            "clip": self.clip,
            "seed": self.seed,
        }


class Objective(NamedTuple):
    """A kind of score distillation. Both functions are device work alone, which a CUDA graph can hold."""

    against: tuple[str, ...]  # what the prior predicts for beside the prompt
    weight: Callable[[Tensor], Tensor]  # w(t) of abar, [B] -> [B]
    residual: Callable[[Denoised, Tensor, Arithmetic], Tensor]
    """Predictions and the weight [B] of every item -> the gradient on the latents [V, ...]"""
    rescales: bool = True
    """Whether `--guidance-rescale` means something to it: it has one clean guess"""
    noise: Callable[[Noising, Arithmetic], Noised] | None = None
    """Latents to their noisy ones, by further evaluations of the network; None: by the step's own noise"""


def noised(objective: Objective, noising: Noising, arithmetic: Arithmetic) -> Noised:
    """The noisy latents of an objective."""
    if objective.noise is None:
        return noising.noised(noising.add_noise(noising.levels), None)
    return objective.noise(noising, arithmetic)


# ---- w(t)


def dreamfusion(levels: Tensor) -> Tensor:
    """1 - abar (DreamFusion, arXiv 2209.14988)."""
    return 1 - levels


def towards_clean(levels: Tensor) -> Tensor:
    """(1 - abar) / sqrt(abar): since eps^ - eps = sqrt(abar / (1 - abar)) (z - z0^), the gradient is
    sqrt(1 - abar) (z - z0^)."""
    return (1 - levels) / levels.sqrt()


# ---- Residuals


def injected_noise(denoised: Denoised, weight: Tensor, arithmetic: Arithmetic) -> Tensor:
    """eps^ - eps, guided, less the noise that was injected; eps is made again from its counter."""
    noisy, (cond, uncond), levels = denoised.noisy, denoised.guesses, denoised.levels
    return arithmetic.score_residual(
        noisy,
        cond,
        uncond,
        levels,
        weight,
        noise_stream=NOISE_STREAM,
        actions=denoised.noises,
        stream_offset=denoised.stream_offset,
        clean_scale=_clean_scale(denoised, arithmetic),
    )


def found_noise(denoised: Denoised, weight: Tensor, arithmetic: Arithmetic) -> Tensor:
    """eps^ - the noise that was found, guided."""
    noisy, (cond, uncond), levels = denoised.noisy, denoised.guesses, denoised.levels
    scale = _clean_scale(denoised, arithmetic)
    said = arithmetic.denoise_action(
        noisy, cond, uncond, levels, levels, outputs=("guided_noise",), clean_scale=scale
    ).guided_noise
    assert said is not None
    pull = weight.view(-1, *[1] * (noisy.dim() - 1)) * (said - denoised.found)
    return pull.unflatten(0, (-1, denoised.noises)).sum(1)


def classifier(denoised: Denoised, weight: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Classifier score distillation (arXiv 2310.19415)."""
    return _mixed(denoised, weight, csd_mixture(len(weight), weight.device), arithmetic)


def noise_free(denoised: Denoised, weight: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Noise-free score distillation (arXiv 2310.17590)."""
    scale, count = arithmetic.guidance_scale, arithmetic.train_timesteps
    return _mixed(denoised, weight, nfsd_mixture(denoised.timesteps, scale, count), arithmetic)


def _mixed(denoised: Denoised, weight: Tensor, mixture: Tensor, arithmetic: Arithmetic) -> Tensor:
    cond, uncond, *negative = denoised.guesses
    return mixed_residual(
        denoised.noisy,
        cond,
        uncond,
        negative[0] if negative else None,
        denoised.levels,
        weight,
        mixture,
        arithmetic.prediction_type,
        denoised.noises,
    )


def _clean_scale(denoised: Denoised, arithmetic: Arithmetic) -> Tensor | None:
    """What each clean guess shrinks by, [B], where strong guidance has widened its spread."""
    if not arithmetic.guidance_rescale:
        return None
    noisy, guesses, levels = denoised.noisy, denoised.guesses, denoised.levels
    denoise = functools.partial(arithmetic.denoise_action, clip=None, outputs=("clean",))
    plain, guided = (denoise(noisy, guesses[0], other, levels, levels).clean for other in (None, guesses[1]))
    assert plain is not None
    assert guided is not None
    return guidance_rescale(plain, guided, arithmetic.guidance_rescale)


# "nothing" gives way to a negative prompt where there is one, unless both are wanted.
OBJECTIVES: dict[str, Objective] = {
    "clean": Objective(("nothing",), towards_clean, injected_noise),
    "sds": Objective(("nothing",), dreamfusion, injected_noise),
    "csd": Objective(("nothing",), dreamfusion, classifier, rescales=False),
    "nfsd": Objective(("nothing", "negative"), dreamfusion, noise_free, rescales=False),
    "ism": Objective(("nothing",), dreamfusion, found_noise, noise=interval),
    "sdi": Objective(("nothing",), towards_clean, found_noise, noise=inverted),
}
