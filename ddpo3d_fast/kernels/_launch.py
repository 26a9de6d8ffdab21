"""How the ops reach a backend's functions, and what they check of tensors and devices before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from . import _backend


def launch(
    device: torch.device, name: str, cuda: Mapping[str, object] | None = None, **arguments: object
) -> None:
    """Calls the function `name` of the device's backend; the arguments in `cuda` go to the CUDA one only."""
    module = _backend.backend(device)
    if not _backend.uses_cuda(device):
        getattr(module, name)(**arguments)
        return
    with _backend.on(device):
        getattr(module, f"{name}_cuda")(**arguments, **cuda or {}, cuda_stream=_backend.stream(device))


def same_device(name: str, value: object, like: Tensor | None = None, like_name: str = "") -> Tensor:
    """`value` without its autograd graph, if it is a tensor on a device with a backend and on that of `like`.

    Raises TypeError for what is no tensor, ValueError for another device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
    if like is not None and value.device != like.device:
        place = "the CPU" if like.device.type == "cpu" else like.device
        raise ValueError(f"{name}: expected a tensor on {place} as {like_name}, got one on {value.device}")
    _backend.uses_cuda(value.device, name)
    return value.detach()


def device_number(name: str, value: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`value`, if it is one number of this dtype on this device, such as a captured CUDA graph reads anew at
    every replay. TypeError or ValueError if not."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
    if value.device != device or value.dtype != dtype or value.numel() != 1:
        raise ValueError(
            f"{name}: expected one {dtype} on {device}, "
            f"got {value.numel()} of {value.dtype} on {value.device}"
        )
    return value.detach()
