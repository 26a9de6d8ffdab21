"""Objectives whose noise is found, not drawn: ISM and SDI invert DDIM from the view to the noisy latents.

A DDIM step without noise goes from a level to a cleaner one; here it goes the other way (DDIM, arXiv
2010.02502, eq. 12 and section 4.3). The first part of the way is the step's own noise: so the noises of a
view differ, which the policy compares, and the network is not asked about latents without noise.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ddpo3d_fast.guidance.objectives import Arithmetic, Noised, Noising

ISM_INTERVAL = 0.05  # of the training timesteps, from s to t: LucidDreamer's delta_T
ISM_STEPS = 4  # evaluations up to t, at s included: near LucidDreamer's delta_S of 200 timesteps at high t
SDI_STEPS = 10  # of the inversion in SDI's own code, the first of which is the drawn noise here


def interval(noising: Noising, arithmetic: Arithmetic) -> Noised:
    """ISM's latents, and what the network says of their noise at s, an interval before t, without the prompt
    (LucidDreamer, arXiv 2311.11284)."""
    alphas, held_against = noising.alphas_cumprod, slice(1, 2)
    earlier = (noising.timesteps - round(ISM_INTERVAL * len(alphas))).clamp_min(0)
    path = [earlier * part // ISM_STEPS for part in range(1, ISM_STEPS + 1)]
    noisy = noising.add_noise(alphas[path[0]])
    found = noisy
    for here, there in zip(path, [*path[1:], noising.timesteps], strict=True):
        (guess,) = noising.predict(noisy, here, held_against)
        noisy, found = _step(noisy, (guess, None), alphas[here], alphas[there], arithmetic, 1.0)
    return noising.noised(noisy, found)


def inverted(noising: Noising, arithmetic: Arithmetic) -> Noised:
    """SDI's latents, and the noise kappa that makes them of the view's (arXiv 2405.15891).

    The guidance of the inversion is that of the step mirrored at 1, as in SDI's own settings.
    """
    alphas, both = noising.alphas_cumprod, slice(0, 2)
    path = [noising.timesteps * part // SDI_STEPS for part in range(1, SDI_STEPS + 1)]
    noisy = noising.add_noise(alphas[path[0]])
    for here, there in itertools.pairwise(path):
        cond, uncond = noising.predict(noisy, here, both)
        scale = 2 - arithmetic.guidance_scale
        noisy, _ = _step(noisy, (cond, uncond), alphas[here], alphas[there], arithmetic, scale)
    level = noising.levels.view(-1, *[1] * (noisy.dim() - 1))
    clean = noising.latents.repeat_interleave(noising.noises, 0)
    return noising.noised(noisy, (noisy - level.sqrt() * clean) / (1 - level).sqrt())


def _step(
    noisy: Tensor,
    guesses: tuple[Tensor, Tensor | None],
    level: Tensor,
    onwards: Tensor,
    arithmetic: Arithmetic,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Latents [B, ...] at the noisier level [B] `onwards`, and the noise [B, ...] that was guessed here."""
    said = arithmetic.denoise_action(
        noisy, *guesses, level, level, guidance_scale=scale, outputs=("guided_noise", "clean")
    )
    assert said.guided_noise is not None
    assert said.clean is not None
    there = onwards.view(-1, *[1] * (noisy.dim() - 1))
    return there.sqrt() * said.clean + (1 - there).sqrt() * said.guided_noise, said.guided_noise
