"""An objective of one's own: it pulls all latents one way, whatever the prior says."""

import torch
from torch import Tensor

from ddpo3d_fast.guidance.objectives import Arithmetic, Denoised, Objective


def one(levels: Tensor) -> Tensor:
    return torch.ones_like(levels)


def constant(denoised: Denoised, weight: Tensor, arithmetic: Arithmetic) -> Tensor:
    """The gradient [V, ...] on the latents: the weights of a view's noises, in every number."""
    views = weight.view(-1, denoised.noises).sum(1)
    return torch.ones_like(denoised.noisy[:: denoised.noises]) * views.view(-1, 1, 1, 1)


OBJECTIVE = Objective(("nothing",), one, constant)
