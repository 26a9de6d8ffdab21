"""The torch engine: a network's module itself, on any device that torch has."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddpo3d_fast.engines.network import Network


class TorchEngine:
    """A network on torch: its module is called as it is, so that a CUDA graph can capture it.

    Nothing waits for the device. The given module stays as it was: the engine has parameters of its own where
    device, dtype or memory format differ, and shares them where they do not.
    """

    def __init__(self, network: Network, device: torch.device | str, dtype: torch.dtype) -> None:
        """`dtype` is what floats are computed in; they come and go as float32."""
        self.device, self.dtype = torch.device(device), dtype
        self._names, self._outputs, self._gradient = list(network.inputs), network.outputs, network.gradient
        last = network.channels_last
        weights = torch.channels_last if last else torch.contiguous_format
        self._module = placed(network.module, self.device, dtype, weights)
        self._pictures = torch.channels_last if last else torch.preserve_format
        place = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        self.runtime = f"torch {torch.__version__}, {place}, {str(dtype).removeprefix('torch.')}"

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        given = [self._cast(inputs[name].detach()) for name in self._names]
        with torch.set_grad_enabled(self._gradient), reproducible(self._gradient):
            results = self._module(*given)
        results = (results,) if isinstance(results, Tensor) else results
        return {
            name: result.detach().to(torch.float32, memory_format=torch.contiguous_format)
            for name, result in zip(self._outputs, results, strict=True)
        }

    def _cast(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        layout = self._pictures if tensor.ndim == 4 else torch.contiguous_format
        return tensor.to(self.dtype, memory_format=layout)


@contextlib.contextmanager
def reproducible(gradient: bool) -> Iterator[None]:
    """cuDNN as it repeats itself to the bit, and without TF32, which would round fp32 to 11 bits; attention
    whose gradient is no sum of atomics, which add in any order."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_precise_cudnn())
        if gradient:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


@contextlib.contextmanager
def _precise_cudnn() -> Iterator[None]:
    """cuDNN deterministic and without TF32, whichever of torch's two ways the user has chosen a precision in.

    From torch 2.9 on there is a second one, `fp32_precision`. Where it is in use, as a user's module may have
    it, `cudnn.flags` takes no TF32 away, and raises when it is left.
    """
    cudnn: Any = torch.backends.cudnn
    if not _has_fp32_precision(cudnn):
        with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
        return
    before = cudnn.enabled, cudnn.deterministic, cudnn.conv.fp32_precision
    try:
        cudnn.enabled, cudnn.deterministic, cudnn.conv.fp32_precision = True, True, "ieee"
        yield
    finally:
        cudnn.enabled, cudnn.deterministic, cudnn.conv.fp32_precision = before


def _has_fp32_precision(cudnn: Any) -> bool:
    """Whether somebody has set `fp32_precision`, for all, for cuDNN, or for one of its operations."""
    if not hasattr(cudnn, "conv"):
        return False
    try:
        _ = cudnn.allow_tf32
    except RuntimeError:  # the two ways disagree
        return True
    return cudnn.fp32_precision != "none"  # takes torch.backends.fp32_precision where it has none of its own


def placed(
    module: nn.Module, device: torch.device, dtype: torch.dtype, images: torch.memory_format
) -> nn.Module:
    """A copy of a module, frozen, with its floats on a device in a dtype; `images` is the format of what has
    four axes. What is there already is shared, not copied."""
    memo: dict[int, Any] = {}  # what deepcopy takes in place of each tensor
    for tensor in (*module.parameters(), *module.buffers()):
        layout = images if tensor.ndim == 4 else torch.contiguous_format
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        moved = tensor.detach().to(device, kind, memory_format=layout)
        memo[id(tensor)] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(module, memo).eval()
