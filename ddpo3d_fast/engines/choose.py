"""Which runtimes there are, which are to be had, and which one, in which dtype, where nobody says."""

from __future__ import annotations

import torch

from ddpo3d_fast.engines import openvino, tensorrt
from ddpo3d_fast.engines.export import missing_packages
from ddpo3d_fast.errors import InputError, suggestion

RUNTIMES = ("tensorrt", "openvino", "onnxruntime", "torch")


def choose_runtime(
    wanted: str, device: torch.device, dtype: torch.dtype | None = None, exports: bool = True
) -> str:
    """The runtime that a wish stands for on a device; `exports` says whether a graph is still to be made.

    For `auto` that is TensorRT on CUDA, and on the CPU OpenVINO where fp32 is wanted, or bf16 by a processor
    that computes in it, then ONNX Runtime where fp32 is wanted, if they are there; else torch.

    Raises InputError for an unknown one, or one that is not to be had.
    """
    if wanted == "auto":
        return next(name for name in _hopes(device, dtype) if not unavailable(name, device, exports))
    if wanted not in RUNTIMES:
        names = ", ".join(("auto", *RUNTIMES))
        raise InputError(f"--runtime: expected one of {names}, got {wanted!r}{suggestion(wanted, RUNTIMES)}")
    if reason := unavailable(wanted, device, exports):
        raise InputError(f"--runtime: expected one that is to be had here, got {wanted}: {reason}")
    return wanted


def _hopes(device: torch.device, dtype: torch.dtype | None) -> tuple[str, ...]:
    """What `auto` may stand for, the fastest first."""
    if device.type != "cpu":
        return ("tensorrt", "torch")
    if dtype in (None, torch.float32):
        return ("openvino", "onnxruntime", "torch")
    return ("openvino", "torch") if dtype == torch.bfloat16 and openvino.computes_bf16() else ("torch",)


def default_dtype(device: torch.device, runtime: str = "auto", exports: bool = True) -> torch.dtype:
    """What networks compute in where nobody says: fp16 on CUDA; bf16 by OpenVINO where the processor computes
    in it; else fp32. `runtime` and `exports` are as for `choose_runtime`."""
    if device.type == "cuda":
        return torch.float16
    by_openvino = choose_runtime(runtime, device, exports=exports) == "openvino"
    return torch.bfloat16 if by_openvino and openvino.computes_bf16() else torch.float32


def unavailable(runtime: str, device: torch.device, exports: bool = True) -> str | None:
    """Why a runtime cannot be used on a device, in one line; None if it can."""
    if runtime == "torch":
        return None
    home = "cuda" if runtime == "tensorrt" else "cpu"
    if device.type != home:
        return f"runs on {home} alone, not on {device.type}"
    own = {"tensorrt": tensorrt.unavailable, "openvino": openvino.unavailable}
    if runtime in own and (reason := own[runtime]()):
        return reason
    if exports and (missing := missing_packages()):
        return f"needs {' and '.join(missing)} to export a graph: pip install {' '.join(missing)}"
    return None
