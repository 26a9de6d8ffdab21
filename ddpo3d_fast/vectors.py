"""Lengths that a pull is relative to."""

from __future__ import annotations

import torch
from torch import Tensor


def length_across(vectors: Tensor, directions: Tensor) -> Tensor:
    """[N] lengths of what of vectors [N, D] is across directions [N, D] of any length.

    What is along a pull does not count in what it is relative to: that grows against the pull, which would
    grow with it without end.
    """
    along = torch.nn.functional.normalize(directions, dim=1)
    return (vectors - (vectors * along).sum(1, keepdim=True) * along).norm(dim=1)
