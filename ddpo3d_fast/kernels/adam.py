"""Fused Adam: one pass over parameter, gradient and both moments, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _backend
from ._backend import address, integer
from ._launch import device_number, launch, same_device


class AdamGroup(NamedTuple):
    """One tensor of parameters for `adam_groups`, all float32, of one shape and on one device."""

    param: Tensor  # [rows, ...], contiguous, updated in place
    grad: Tensor  # as param
    exp_avg: Tensor  # as param, contiguous, updated in place
    exp_avg_sq: Tensor  # as param, contiguous, updated in place
    lr: (
        float | Tensor
    )  # learning rate, 0 or more; or a float32 tensor [rows] or [rows, 1, ...], a rate per row


def adam(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int | Tensor,
    lr: float | Tensor,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
) -> None:
    """Updates `param`, `exp_avg` and `exp_avg_sq` in place, like torch.optim.Adam (arXiv 1412.6980).

    A gradient element that is NaN, infinite, or too large for its square to be a float32 counts as 0, so it
    cannot poison its parameter: the moments decay and the parameter moves on by its momentum.

    Args:
        param, grad, exp_avg, exp_avg_sq: float32 tensors of one shape on one device; all but `grad`
            contiguous.
        step: number of this update, 1 for the first; an int, or one int64 on the device (see `adam_groups`).
        lr: learning rate, 0 or more; a float, or a float32 tensor [rows] or [rows, 1, ...] for a rate per
            row of param.
        beta1, beta2: decay of the moments, in [0, 1).
        eps: added to the root of the second moment, above 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range. The values of
            tensors are checked on the CPU only, since on a GPU that would be a wait; a step below 1 or a
            negative rate gives there what the formula gives.
    """
    group = AdamGroup(param, grad, exp_avg, exp_avg_sq, lr)
    _update([("", group)], step, beta1, beta2, eps, None, None)


def adam_groups(
    groups: Sequence[AdamGroup],
    step: int | Tensor,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
    rate_scale: Tensor | None = None,
    skip: Tensor | None = None,
) -> None:
    """`adam` for several tensors at the same step; on a GPU one launch for every eight of them.

    A captured CUDA graph freezes the numbers that it was captured with. So `step`, `rate_scale` and `skip`
    may be tensors on the groups' device, which every replay reads anew.

    Args:
        groups: what to update; nothing is, unless all groups are as they should be.
        step: number of this update, 1 for the first; an int or one int64.
        beta1, beta2, eps: as in `adam`.
        rate_scale: one float32 that multiplies every learning rate, or one for each group; None: 1.
        skip: one int32; where it is not 0 nothing is updated. None: update.

    Raises:
        TypeError, ValueError: as in `adam`; an argument of a group is named with the group's index.
    """
    named = [(f"groups[{index}].", group) for index, group in enumerate(groups)]
    _update(named, step, beta1, beta2, eps, rate_scale, skip)


class _Checked(NamedTuple):
    """A group as the backends take it. Its tensors must live until the call returns."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    rows: int
    columns: int
    rate: float  # where `rates` is None
    rates: Tensor | None  # [rows]


def _update(
    named: Sequence[tuple[str, AdamGroup]],
    step: int | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    rate_scale: Tensor | None,
    skip: Tensor | None,
) -> None:
    if not isinstance(step, Tensor):
        step = integer("step", step)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"{name}: expected a number in [0, 1), got {beta}")
    if not eps > 0.0:
        raise ValueError(f"eps: expected a positive number, got {eps}")
    groups: list[_Checked] = []
    for prefix, group in named:
        groups.append(_check(prefix, group, groups[0].param if groups else None))
    if not groups:
        return

    device = groups[0].param.device
    if isinstance(step, Tensor):
        device_number("step", step, torch.int64, device)
    if rate_scale is not None:
        rate_scale = _rate_scale(rate_scale, len(groups), device)
    if skip is not None:
        device_number("skip", skip, torch.int32, device)

    if _backend.uses_cuda(device):
        _update_cuda(groups, step, beta1, beta2, eps, rate_scale, skip)
    else:
        _update_cpu(groups, step, beta1, beta2, eps, rate_scale, skip)


def _update_cpu(
    groups: Sequence[_Checked],
    step: int | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    rate_scale: Tensor | None,
    skip: Tensor | None,
) -> None:
    number = _positive(int(step))
    if skip is not None and int(skip):
        return
    for index, group in enumerate(groups):
        rate, rates = group.rate, group.rates
        if rate_scale is not None:  # in float32, as on a GPU
            scale = rate_scale[index if len(rate_scale) > 1 else 0]
            rate = float(torch.tensor(rate, dtype=torch.float32) * scale)
            rates = None if rates is None else rates * scale
        launch(
            group.param.device,
            "adam",
            param=address(group.param),
            grad=address(group.grad),
            exp_avg=address(group.exp_avg),
            exp_avg_sq=address(group.exp_avg_sq),
            rows=group.rows,
            columns=group.columns,
            step=number,
            learning_rate=rate,
            row_learning_rates=address(rates),
            beta1=beta1,
            beta2=beta2,
            epsilon=eps,
        )


def _update_cuda(
    groups: Sequence[_Checked],
    step: int | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    rate_scale: Tensor | None,
    skip: Tensor | None,
) -> None:
    device = groups[0].param.device
    number, device_step = (1, step) if isinstance(step, Tensor) else (_positive(step), None)
    rows = [
        (
            *(address(tensor) for tensor in group[:4]),
            group.rows,
            group.columns,
            group.rate,
            address(group.rates),
        )
        for group in groups
    ]
    most = _backend.backend(device).max_adam_groups
    stride = int(rate_scale is not None and len(rate_scale) > 1)
    for first in range(0, len(rows), most):
        scales = rate_scale[first:] if rate_scale is not None and stride else rate_scale
        launch(
            device,
            "adam",
            groups=rows[first : first + most],
            step=number,
            beta1=beta1,
            beta2=beta2,
            epsilon=eps,
            device_step=address(device_step),
            rate_scales=address(scales),
            rate_scale_stride=stride,
            skip=address(skip),
        )


def _check(prefix: str, group: AdamGroup, like: Tensor | None) -> _Checked:
    param = same_device(f"{prefix}param", group.param, like, "groups[0].param")
    tensors = {"param": param, "grad": group.grad, "exp_avg": group.exp_avg, "exp_avg_sq": group.exp_avg_sq}
    for name, tensor in tensors.items():
        _float32(prefix + name, tensor, param, f"{prefix}param")
        if tensor.shape != param.shape:
            raise ValueError(
                f"{prefix}{name}: expected the shape {tuple(param.shape)} of param, got {tuple(tensor.shape)}"
            )
        if name != "grad" and not tensor.is_contiguous():
            raise ValueError(f"{prefix}{name}: expected a contiguous tensor, got strides {tensor.stride()}")
    rows = param.shape[0] if param.dim() else 1
    columns = param.numel() // rows if rows else 0
    rate, rates = _rates(f"{prefix}lr", group.lr, rows, param, f"{prefix}param")
    return _Checked(
        param, group.grad.detach().contiguous(), group.exp_avg, group.exp_avg_sq, rows, columns, rate, rates
    )


def _rate_scale(value: object, groups: int, device: torch.device) -> Tensor:
    """[1] or [groups], contiguous."""
    if not isinstance(value, Tensor):
        raise TypeError(f"rate_scale: expected a torch tensor, got {type(value).__name__}")
    if value.device != device or value.dtype != torch.float32 or value.numel() not in (1, groups):
        raise ValueError(
            f"rate_scale: expected 1 or {groups} torch.float32 on {device}, "
            f"got {value.numel()} of {value.dtype} on {value.device}"
        )
    return value.detach().reshape(-1).contiguous()


def _rates(
    name: str, lr: float | Tensor, rows: int, param: Tensor, param_name: str
) -> tuple[float, Tensor | None]:
    """The rate of all rows, or 0 and the rates [rows]."""
    if isinstance(lr, Tensor) and lr.numel() == 1 and lr.device.type != "cpu":
        _float32(name, lr, param, param_name)
        return 0.0, lr.detach().reshape(1).expand(rows).contiguous()  # its value is not waited for
    if not isinstance(lr, Tensor) or lr.numel() == 1:
        if not float(lr) >= 0.0:
            raise ValueError(f"{name}: expected 0 or more, got {float(lr)}")
        return float(lr), None
    _float32(name, lr, param, param_name)
    if lr.shape[0] != rows or lr.numel() != rows:
        raise ValueError(f"{name}: expected a float or shape ({rows},), got {tuple(lr.shape)}")
    if lr.device.type == "cpu" and not bool((lr >= 0).all()):
        raise ValueError(f"{name}: expected rates of 0 or more, got some below or NaN")
    return 0.0, lr.detach().contiguous()


def _float32(name: str, value: object, like: Tensor, like_name: str) -> None:
    tensor = same_device(name, value, like, like_name)
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name}: expected float32, got {tensor.dtype}")


def _positive(step: int) -> int:
    if step < 1:
        raise ValueError(f"step: expected 1 or more, got {step}")
    return step
