"""Gradients as sparse tensors of the rows that were visible."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Rows:
    """Which rows were visible; known once the forward pass has run."""

    indices: Tensor  # [n] int64, ascending, each once


class _OfRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        indices = ctx.rows.indices
        sparse = torch.sparse_coo_tensor(
            indices[None], grad[indices], grad.shape, is_coalesced=True, check_invariants=False
        )
        return sparse, None


def of_rows(tensor: Tensor, rows: Rows) -> Tensor:
    """`tensor` [N, ...], whose gradient becomes a COO tensor of `rows`."""
    return _OfRows.apply(tensor, rows)
