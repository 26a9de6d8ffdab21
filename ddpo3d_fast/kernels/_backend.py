"""The compiled extension, and what every op needs: threads, build facts, tensors checked and addressed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from numbers import Real
from operator import index
from typing import Any

import torch
from torch import Tensor

try:
    from ddpo3d_fast import _C
except ImportError as error:
    raise ImportError(
        f"ddpo3d_fast was not built for this Python ({error}): run `pip install .` in its checkout"
    ) from error


def set_num_threads(count: int) -> None:
    """Sets how many threads the CPU kernels use, 1 to 1024; by default the cores this process may run on.

    No result depends on it. Raises ValueError for a count outside 1 to 1024.
    """
    _C.set_num_threads(min(max(integer("count", count), 0), 2**30))


def get_num_threads() -> int:
    """How many threads the CPU kernels use, the caller's included."""
    return _C.num_threads()


def build_info() -> dict[str, Any]:
    """What was built and what of it runs here.

    `compiler`; `cuda`: was a CUDA backend built; `simd`: the level in use, scalar, avx2 or avx512 (the
    environment variable DDPO3D_SIMD forces one; ValueError where it names none of this processor's);
    `threads`. With a CUDA backend also `cuda_targets`, the architectures that it was built for, in CMake's
    words ("80-real", "90"); `cuda_toolkit` and `cuda_driver`, the version of CUDA that it was built with and
    the newest that the driver here is for, 13000 being 13.0 and 0 no driver.
    """
    facts = {
        "compiler": _C.compiler(),
        "cuda": _C.with_cuda,
        "simd": _C.simd_level(),
        "threads": get_num_threads(),
    }
    if _C.with_cuda:
        facts |= {
            "cuda_targets": _C.cuda_targets.split(),
            "cuda_toolkit": _C.cuda_toolkit,
            "cuda_driver": _C.cuda_driver(),
        }
    return facts


def uses_cuda(device: torch.device, name: str = "device") -> bool:
    """Whether ops on this device run the CUDA functions; ValueError, about `name`, if no backend has it."""
    if device.type == "cpu":
        return False
    if device.type != "cuda":
        raise ValueError(f"{name}: expected a CPU or CUDA tensor, got one on {device}")
    if not _C.with_cuda:
        raise ValueError(
            f"{name}: expected a CPU tensor, got one on {device}; this build has no CUDA backend: "
            "build again where there is an nvcc (DDPO3D_CUDA=1 says why it is not found)"
        )
    return True


def backend(device: torch.device) -> Any:
    """The extension module whose functions serve this device; the CUDA ones end in _cuda."""
    uses_cuda(device)
    return _C


def stream(device: torch.device) -> int:
    """The address of torch's current CUDA stream; 0 for the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a CUDA device the current one; launches go to the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def wait(device: torch.device) -> None:
    """Waits until the current CUDA stream has run dry; nothing for the CPU."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def integer(name: str, value: object, expected: str = "an int") -> int:
    """`value` as an int, if it is one or, as numpy's integers, stands for one.

    TypeError, about `name`, if not; also for a bool, and for a tensor, which could be a wait for a device.
    """
    if not isinstance(value, bool | Tensor):
        try:
            return index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def number(name: str, value: object) -> float:
    """`value` as a float, if it is a real number, numpy's among them. TypeError, about `name`, if not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    return float(value)


def checked(name: str, tensor: object, shape: tuple[int | str, ...], like: Tensor | None = None) -> Tensor:
    """`tensor` made contiguous, if it is a float32 tensor of this shape; letters stand for any size.

    Raises TypeError for what is no tensor or of another dtype, ValueError for another shape, for a device
    without a backend, or for another device than that of `like`.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    expected = "[" + ", ".join(str(size) for size in shape) + "]"
    fits = tensor.dim() == len(shape) and all(
        isinstance(size, str) or size == actual for size, actual in zip(shape, tensor.shape, strict=False)
    )
    if not fits:
        raise ValueError(f"{name}: expected shape {expected}, got {list(tensor.shape)}")
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name}: expected torch.float32, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {tensor.layout}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as the other tensors, got {tensor.device}")
    uses_cuda(tensor.device, name)
    return tensor.contiguous()


def address(tensor: Tensor | None) -> int:
    """Where a contiguous tensor's numbers lie; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
