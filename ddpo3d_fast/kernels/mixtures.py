"""What weighs the diffusion arithmetic's predictions and guesses: a number or three an item."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._diffusion_arguments import latents_of
from ._launch import same_device


def csd_mixture(items: int, device: torch.device | str = "cpu") -> Tensor:
    """Classifier score distillation, eps_c - eps_u (Yu et al., arXiv 2310.19415), as the `mixture`
    [items, 3] of `mixed_residual`. It has no guidance scale: that would be another residual weight."""
    mixture = torch.zeros((items, 3), device=device)
    mixture[:, 0], mixture[:, 1] = 1, -1
    return mixture


def nfsd_mixture(timesteps: Tensor, guidance_scale: float, train_timesteps: int = 1000) -> Tensor:
    """Noise-free score distillation (Katzir et al., arXiv 2310.17590) as the `mixture` of `mixed_residual`.

        s (eps_c - eps_u) + delta_D,    delta_D = eps_u where t < 200 of 1000, eps_u - eps_n elsewhere

    with the empty prompt's eps_u and the negative prompt's eps_n, which need not be predicted where all
    timesteps are that early.

    Args:
        timesteps: [B] t of every item.
        guidance_scale: s.
        train_timesteps: how many timesteps the UNet was trained with, the 1000 above.

    Returns:
        [B, 3] float32 on the device of `timesteps`, made without a wait.

    Raises:
        TypeError, ValueError: `timesteps` no tensor or of another shape, a scale that is not finite.
    """
    timesteps = same_device("timesteps", timesteps)
    if timesteps.dim() != 1:
        raise ValueError(f"timesteps: expected shape [B], got {list(timesteps.shape)}")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: expected a finite number, got {guidance_scale}")
    mixture = torch.full((len(timesteps), 3), float(guidance_scale), device=timesteps.device)
    mixture[:, 1] = 1 - mixture[:, 0]
    mixture[:, 2] = -(5 * timesteps >= train_timesteps).float()
    return mixture


def guidance_rescale(clean_cond: Tensor, clean_guided: Tensor, rescale: float) -> Tensor:
    """How much the guided clean guess is to shrink, as the `clean_scale` of `score_residual` and
    `denoise_action`: strong guidance widens its spread, which over-saturates (Lin et al., arXiv 2305.08891,
    section 3.4).

        rescale std(z0^_cond) / std(z0^_guided) + 1 - rescale

    with the deviation over an item's elements. MVDream takes it over an object's views together: give it
    their guesses as one item, and repeat the factor.

    Args:
        clean_cond: [B, ...] clean guess from the conditional prediction alone: `denoise_action` with
            `pred_uncond=None` and `outputs=("clean",)`.
        clean_guided: [B, ...] clean guess after guidance, unclipped as the other.
        rescale: 0 (no change) to 1 (the deviation of `clean_cond`); the paper has 0.7, MVDream 0.5.

    Returns:
        [B] float32 on the tensors' device, made without a wait. 1 where the guided guess is constant.

    Raises:
        TypeError, ValueError: guesses of unlike shapes, devices or unknown dtypes, a rescale outside 0 to 1.
    """
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale: expected a number from 0 to 1, got {rescale}")
    guided = latents_of("clean_guided", clean_guided)
    cond = latents_of("clean_cond", clean_cond, guided, "clean_guided")
    of_cond, of_guided = (guess[:, None].flatten(1).float().std(1, correction=0) for guess in (cond, guided))
    ratio = torch.where(of_guided == 0, 1.0, of_cond / of_guided)
    return rescale * ratio + (1 - rescale)
