"""gsplat's `compute_relocation`.

Source: 3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand et al. 2024), eq. 9.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def compute_relocation(
    opacities: Tensor,  # [N]
    scales: Tensor,  # [N, 3]
    ratios: Tensor,  # [N]
    binoms: Tensor,  # [n_max, n_max]
) -> tuple[Tensor, Tensor]:
    """What opacity [N] and scales [N, 3] each of `ratios` Gaussians in the place of one has."""
    most = len(binoms)
    counts = ratios.clamp_(min=1, max=most).long()
    new = 1 - (1 - opacities).pow(1 / counts)
    k = torch.arange(most, device=opacities.device)
    # sum over i = 1..count and k = 0..i-1 of binom(i - 1, k) (-1)^k / sqrt(k + 1) new^(k + 1)
    terms = (-1.0) ** k / (k + 1.0).sqrt() * new[:, None] ** (k + 1)  # [N, n_max]
    below = torch.tril(torch.ones_like(binoms))
    totals = (terms @ (binoms * below).T).cumsum(-1)  # [N, n_max] up to each count
    total = totals.gather(1, (counts - 1)[:, None])[:, 0]
    return new, (opacities / total)[:, None] * scales
