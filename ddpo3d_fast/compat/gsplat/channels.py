"""Any number of channels, three a pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._passes import Pass, Tell

CHANNELS = 3  # of a pass


def run_channels(
    run: Callable[[Tensor, Tensor | None], Pass],
    colors: Tensor,  # [N, D]
    backgrounds: Tensor | None,  # [C, D]
) -> list[Pass]:
    """The forward passes, each `run` with colours [N, 3] and backgrounds [C, 3]."""
    passes = []
    for start in range(0, max(colors.shape[-1], 1), CHANNELS):
        chunk = colors[..., start : start + CHANNELS]
        behind = None if backgrounds is None else backgrounds[..., start : start + CHANNELS]
        missing = CHANNELS - chunk.shape[-1]
        if missing:
            chunk = pad(chunk, (0, missing))
            behind = None if behind is None else pad(behind, (0, missing))
        passes.append(run(chunk, behind))
    return passes


def tape_channels(
    passes: list[Pass], channels: int, means2d: Tensor, tell: Tell | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Colours [C, H, W, channels], alpha [C, H, W] and depth [C, H, W], differentiable; alpha, depth and what
    `tell` is told are the first pass's."""
    taped = [one.on_tape(means2d, None if i else tell) for i, one in enumerate(passes)]
    pictures = taped[0][0] if len(taped) == 1 else torch.cat([rgb for rgb, _, _ in taped], -1)
    return pictures[..., :channels], taped[0][1], taped[0][2]
