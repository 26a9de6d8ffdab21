"""Fused Adam: one pass over parameter, gradient and both moments, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ._backend import _C


def adam(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float | Tensor,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
) -> None:
    """Updates `param`, `exp_avg` and `exp_avg_sq` in place, like torch.optim.Adam (arXiv 1412.6980).

    A gradient element that is NaN, infinite, or too large for its square to be a float32 counts as 0, so it
    cannot poison its parameter: the moments decay and the parameter moves on by its momentum.

    Args:
        param, grad, exp_avg, exp_avg_sq: float32 tensors of one shape on the CPU; all but `grad` contiguous.
        step: number of this update, 1 for the first.
        lr: learning rate, 0 or more; a float, or a float32 tensor [rows] or [rows, 1, ...] for a rate per
            row of param.
        beta1, beta2: decay of the moments, in [0, 1).
        eps: added to the root of the second moment, above 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range.
    """
    tensors = {"param": param, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, tensor in tensors.items():
        _check(name, tensor)
        if tensor.shape != param.shape:
            raise ValueError(
                f"{name}: expected the shape {tuple(param.shape)} of param, got {tuple(tensor.shape)}"
            )
        if name != "grad" and not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"step: expected an int, got {type(step).__name__}")
    if step < 1:
        raise ValueError(f"step: expected 1 or more, got {step}")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"{name}: expected a number in [0, 1), got {beta}")
    if not eps > 0.0:
        raise ValueError(f"eps: expected a positive number, got {eps}")

    rows = param.shape[0] if param.dim() else 1
    columns = param.numel() // rows if rows else 0
    rates = None
    if isinstance(lr, Tensor) and lr.numel() != 1:
        _check("lr", lr)
        if lr.shape[0] != rows or lr.numel() != rows:
            raise ValueError(f"lr: expected a float or shape ({rows},), got {tuple(lr.shape)}")
        if not bool((lr >= 0).all()):
            raise ValueError("lr: expected rates of 0 or more, got some below or NaN")
        rates = lr.detach().contiguous()
    elif not float(lr) >= 0.0:
        raise ValueError(f"lr: expected 0 or more, got {float(lr)}")
    grad = grad.detach().contiguous()
    _C.adam(
        param.data_ptr(),
        grad.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        rows,
        columns,
        step,
        0.0 if rates is not None else float(lr),
        0 if rates is None else rates.data_ptr(),
        beta1,
        beta2,
        eps,
    )


def _check(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
    if value.device.type != "cpu":
        raise ValueError(f"{name}: expected a tensor on the CPU, got one on {value.device}")
    if value.dtype != torch.float32:
        raise TypeError(f"{name}: expected float32, got {value.dtype}")
