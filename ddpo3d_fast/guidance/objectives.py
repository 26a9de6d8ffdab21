"""What pulls the latents: each objective is a weight w(t) and a residual of the prior's predictions.

One of one's own is a file, a line in OBJECTIVES, and its name in the settings' Literal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ddpo3d_fast.kernels import (
    csd_mixture,
    denoise_action,
    guidance_rescale,
    mixed_residual,
    nfsd_mixture,
    score_residual,
)

NOISE_STREAM, ACTION_STREAM = 0, 1  # of Philox, beside the step's offset


class Denoised(NamedTuple):
    """Noisy latents and what the prior makes of them: item v K + k is noise k of view v, B = V K in all."""

    noisy: Tensor  # [B, ...] z_t
    guesses: tuple[Tensor, ...]  # [B, ...] each: for the prompt, then for each of what it is held against
    levels: Tensor  # [B] abar
    timesteps: Tensor  # [B] int64
    stream_offset: Tensor  # [1] int64, of the step's noises
    noises: int  # K


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
}
