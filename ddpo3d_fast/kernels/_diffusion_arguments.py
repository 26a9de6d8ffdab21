"""What the diffusion arithmetic's ops check of their arguments, and how these reach a backend."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _backend
from ._backend import address, integer
from ._launch import device_number, same_device

PREDICTION_TYPES = {"epsilon": 0, "v_prediction": 1, "sample": 2}
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def make_prediction(
    noisy: Tensor,
    pred_cond: Tensor,
    pred_uncond: Tensor | None,
    alphas_cumprod: Tensor,
    guidance_scale: float,
    prediction_type: str,
    clip: tuple[float, float] | None,
    clean_scale: Tensor | None,
) -> tuple[Any, list[Tensor]]:
    """Checks what every use of a prediction shares, and makes the backend's Prediction of it. The list keeps
    the tensors alive; its last one is abar."""
    check_type(prediction_type)
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: expected a finite number, got {guidance_scale}")
    low, high = (0.0, 0.0) if clip is None else (float(clip[0]), float(clip[1]))
    if clip is not None and not low < high:
        raise ValueError(f"clip: expected (low, high) with low < high, got {clip}")
    noisy = latents_of("noisy", noisy)
    cond = latents_of("pred_cond", pred_cond, noisy)
    uncond = None if pred_uncond is None else latents_of("pred_uncond", pred_uncond, noisy)
    alphas = per_item("alphas_cumprod", alphas_cumprod, noisy.shape[0], noisy, "noisy")
    check_alphas(alphas)
    scales = None
    if clean_scale is not None:
        scales = per_item("clean_scale", clean_scale, noisy.shape[0], noisy, "noisy")
    prediction = _backend.backend(noisy.device).Prediction(
        **typed("noisy", noisy),
        **typed("conditional", cond),
        **typed("unconditional", uncond),
        alphas_cumprod=address(alphas),
        guidance_scale=float(guidance_scale),
        type=PREDICTION_TYPES[prediction_type],
        clip=clip is not None,
        clip_low=low,
        clip_high=high,
    )
    if scales is not None:
        prediction.clean_scale = address(scales)
    return prediction, [tensor for tensor in (noisy, cond, uncond, scales, alphas) if tensor is not None]


def typed(name: str, tensor: Tensor | None) -> dict[str, int]:
    """A backend's argument that may be in half precision: its address, 0 if it is absent, and its type."""
    return {name: address(tensor), f"{name}_type": 0 if tensor is None else _DTYPES[tensor.dtype]}


def latents_of(name: str, value: object, noisy: Tensor | None = None, noisy_name: str = "noisy") -> Tensor:
    tensor = same_device(name, value, noisy, noisy_name)
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {tensor.dtype}")
    if tensor.dim() < 1:
        raise ValueError(f"{name}: expected [items, ...], got a scalar")
    if noisy is not None and tensor.shape != noisy.shape:
        raise ValueError(
            f"{name}: expected the shape {tuple(noisy.shape)} of {noisy_name}, got {tuple(tensor.shape)}"
        )
    return tensor.contiguous()


def per_item(
    name: str, value: object, items: int, like: Tensor, like_name: str, columns: tuple[int, ...] = ()
) -> Tensor:
    tensor = same_device(name, value, like, like_name)
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name}: expected float32, got {tensor.dtype}")
    if tensor.shape != (items, *columns):
        raise ValueError(f"{name}: expected shape {(items, *columns)}, got {tuple(tensor.shape)}")
    return tensor.contiguous()


def check_type(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type: expected {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def check_alphas(alphas: Tensor) -> None:
    if alphas.device.type == "cpu" and not bool(((alphas > 0) & (alphas <= 1)).all()):
        raise ValueError("alphas_cumprod: expected values in (0, 1], got some outside")


def offset_streams(device: torch.device, offset: Tensor | None, *streams: int) -> tuple[tuple[int, ...], int]:
    """The streams a backend is to be called with, and the address of the offset that it adds to them itself:
    only on a GPU is it not known yet."""
    if offset is None:
        return streams, 0
    offset = device_number("stream_offset", offset, torch.int64, device)
    if _backend.uses_cuda(device):
        return streams, address(offset)
    return tuple((stream + int(offset)) % 2**64 for stream in streams), 0


def count_of(name: str, value: int) -> int:
    count = integer(name, value)
    if count < 1:
        raise ValueError(f"{name}: expected 1 or more, got {count}")
    return count


def divisor(name: str, value: int, noisy: Tensor) -> int:
    count = count_of(name, value)
    if noisy.shape[0] % count:
        raise ValueError(f"{name}: expected a divisor of the {noisy.shape[0]} items of noisy, got {count}")
    return count


def uint64(name: str, value: int) -> int:
    word = integer(name, value)
    if not 0 <= word < 2**64:
        raise ValueError(f"{name}: expected 0 <= {name} < 2**64, got {word}")
    return word


def dims_of(latents: Tensor) -> int:
    return math.prod(latents.shape[1:])
