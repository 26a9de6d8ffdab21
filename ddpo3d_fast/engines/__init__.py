"""Runs a frozen network: named tensors in, named tensors out, whatever the runtime."""

from __future__ import annotations

from ddpo3d_fast.engines.choose import RUNTIMES, choose_runtime, default_dtype, unavailable
from ddpo3d_fast.engines.load import Disagreement, Engine, load_engine, load_network
from ddpo3d_fast.engines.network import Network, Vjp, in_batches_of
from ddpo3d_fast.engines.onnx import OnnxEngine
from ddpo3d_fast.engines.torch import TorchEngine

__all__ = [
    "RUNTIMES",
    "Disagreement",
    "Engine",
    "Network",
    "OnnxEngine",
    "TorchEngine",
    "Vjp",
    "choose_runtime",
    "default_dtype",
    "in_batches_of",
    "load_engine",
    "load_network",
    "unavailable",
]
