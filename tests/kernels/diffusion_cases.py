"""Calls of every diffusion op and of Adam, so that two backends can be compared on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpo3d_fast.kernels import (
    add_noise,
    csd_mixture,
    denoise_action,
    mixed_residual,
    philox_normal,
    score_residual,
)
from ddpo3d_fast.kernels.adam import AdamGroup, adam, adam_groups

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """Latents of some shape and what else the ops' paths depend on."""

    shape: tuple[int, ...] = (4, 16, 16)
    actions: int = 3
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype | None] = (F32, F32, F32)  # noisy, cond, uncond
    prediction_type: str = "epsilon"
    clip: tuple[float, float] | None = None
    unaligned: bool = False  # every array begins one element after an aligned address
    policy: bool = True


CASES = {
    "floats": Case(),
    "one action": Case(actions=1, prediction_type="v_prediction"),
    "halves": Case(dtypes=(F16, F16, F16), prediction_type="sample", clip=(-1.0, 0.7)),
    "mixed": Case(dtypes=(F32, BF16, F16), actions=8, clip=(-0.5, 0.5)),
    "unguided": Case(dtypes=(BF16, F32, None), policy=False),
    "unaligned": Case(unaligned=True, prediction_type="v_prediction", clip=(-1.0, 1.0)),
    "unaligned halves": Case(unaligned=True, dtypes=(F16, BF16, F16)),
    "odd": Case(shape=(3, 13, 31), actions=2),
    "odd halves": Case(shape=(3, 13, 31), dtypes=(BF16, F16, F16), prediction_type="sample"),
    "remainder 1": Case(shape=(5,), actions=4),
    "remainder 2": Case(shape=(2, 521), clip=(-1.0, 1.0)),
    "remainder 3": Case(shape=(7, 73), unaligned=True),
    "one element": Case(shape=(1,), actions=8),
    "a scalar": Case(shape=(), actions=5),
    "more actions than a block's table": Case(shape=(12,), actions=70),
    "several blocks": Case(shape=(1, 4100), actions=2, dtypes=(F32, F16, F16)),
}


def placed(tensor: Tensor, device: torch.device | str, unaligned: bool) -> Tensor:
    """A contiguous copy on the device, one element past an aligned address if asked for."""
    buffer = torch.empty(tensor.numel() + int(unaligned), dtype=tensor.dtype, device=device)
    copy = buffer[int(unaligned) :].view(tensor.shape)  # up to the end, where AddressSanitizer watches
    copy.copy_(tensor)
    assert copy.is_contiguous()
    assert (copy.data_ptr() % 16 != 0) == unaligned or not tensor.numel()
    return copy


def run_diffusion(case: Case, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Every output of the diffusion ops for the case, on the CPU."""
    views, items = 2, 2 * case.actions
    generator = torch.Generator().manual_seed(0)

    def latents(count: int, dtype: torch.dtype) -> Tensor:
        values = torch.randn(count, *case.shape, generator=generator).to(dtype)
        return placed(values, device, case.unaligned)

    def per_item(values: Tensor) -> Tensor:
        return placed(values, device, case.unaligned)

    noisy, cond = (latents(items, dtype) for dtype in case.dtypes[:2])
    uncond = None if case.dtypes[2] is None else latents(items, case.dtypes[2])
    abar = torch.rand(items, generator=generator) * 0.9 + 0.02
    prev = abar + (1 - abar) * (torch.rand(items, generator=generator) * 0.8 + 0.1)
    prev[0] = 1  # a last step: no variance
    alphas, weight, action_weight = (
        per_item(values) for values in (abar, *torch.randn(2, items, generator=generator))
    )
    if items > 1:
        action_weight[1] = 0
    prediction = (noisy, cond, uncond, alphas)
    out: dict[str, Tensor | None] = {
        "normal": philox_normal((7, *case.shape), 1, 2**63 + 5, device=device),
        "noisy": add_noise(latents(views, case.dtypes[0]), alphas, 3, 4, case.actions),
        "residual": score_residual(
            *prediction, weight, 7.5, case.prediction_type, case.clip, 9, 10, case.actions,
            action_weight=action_weight if case.policy else None, action_stream=11,
        ),
    }  # fmt: skip
    step = denoise_action(
        *prediction, per_item(prev), 7.5, case.prediction_type, 0.8, case.clip, seed=2**64 - 1, stream=6
    )
    out |= step._asdict()
    factors = per_item(torch.rand(items, generator=generator) + 0.5)
    step = denoise_action(
        *prediction, per_item(prev), 7.5, case.prediction_type, 0.8, case.clip,
        outputs=("guided_noise", "clean"), clean_scale=factors,
    )  # fmt: skip
    out |= {f"scaled {name}": tensor for name, tensor in step._asdict().items()}
    out["scaled residual"] = score_residual(
        *prediction, weight, 7.5, case.prediction_type, case.clip, 9, 10, case.actions, clean_scale=factors
    )
    if uncond is not None:
        negative = latents(items, case.dtypes[1])
        for name, third, mixture in (
            ("mixed", negative, torch.randn(items, 3, generator=generator)),
            ("classifier", None, csd_mixture(items)),
        ):
            out[name] = mixed_residual(
                noisy, cond, uncond, third, alphas, weight, per_item(mixture), case.prediction_type,
                case.actions,
            )  # fmt: skip
    return {name: tensor.cpu() for name, tensor in out.items() if tensor is not None}


def run_with_one_unaligned(device: torch.device | str = "cpu") -> list[Tensor]:
    """A mixed residual of aligned inputs, then with each in turn unaligned among the others, on the CPU."""
    inputs = torch.randn(4, 2, 16, generator=torch.Generator().manual_seed(0))
    numbers = (torch.full((2,), 0.5), torch.ones(2), torch.tensor([[1.0, 2.0, 3.0]] * 2))
    on_device = [tensor.to(device) for tensor in numbers]
    return [
        mixed_residual(
            *(placed(tensor, device, index == unaligned) for index, tensor in enumerate(inputs)),
            *on_device, "sample",
        ).cpu()
        for unaligned in (None, 0, 1, 2, 3)
    ]  # fmt: skip


def run_adam(device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Ten groups of unlike shapes, rates and alignments after three steps, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    groups = []
    shapes = [(700, 3), (700, 4), (1030,), (33, 16, 3), (5, 1), (1, 7), (0, 3), (), (2050, 2), (64, 48)]
    for index, shape in enumerate(shapes):
        tensors = [torch.randn(shape, generator=generator) for _ in range(3)]
        tensors.append(torch.rand(shape, generator=generator))
        rows = shape[0] if shape else 1
        lr: float | Tensor = 0.01 * (index + 1)
        if index % 2 and rows > 1:
            lr = placed(torch.rand(rows, generator=generator) * 0.1, device, False)
        groups.append(AdamGroup(*(placed(t, device, index in (2, 4, 9)) for t in tensors), lr))
    groups[0].grad.view(-1)[5] = torch.nan
    number = torch.tensor([3], device=device)
    scale, scales = torch.tensor([0.37], device=device), torch.linspace(0.1, 1, 10, device=device)
    flag = torch.zeros(1, dtype=torch.int32, device=device)
    adam_groups(groups, 1, 0.8, 0.95, 1e-8)
    adam_groups(groups[:6], number, rate_scale=scale, skip=flag)
    adam_groups(groups, 3, skip=flag + 1)  # nothing happens
    adam_groups(groups, 4, rate_scale=scales)  # more than one launch has groups for
    adam(*groups[3][:4], step=number, lr=groups[3].lr)
    return {
        f"{index}.{name}": getattr(group, name).cpu()
        for index, group in enumerate(groups)
        for name in ("param", "exp_avg", "exp_avg_sq")
    }
